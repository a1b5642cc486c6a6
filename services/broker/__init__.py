"""The embedded Kafka-protocol broker of `smoa up`: one node, on loopback, its log on disk.

For one machine and one team's trial of the whole loop; production points SMOA_KAFKA_BOOTSTRAP at a Kafka cluster. It speaks the versions of
the protocol that aiokafka has classes for (a broker of Kafka 2.2, without transactions), and keeps in one SQLite file what must outlive it:
record batches at their offsets, and what consumer groups committed. docs/decisions/0013 says why it is there.
"""
