"""What a traveller asks an agent to arrange."""

from .engine import ByLabel, half, make_job

_TRAIN = half(
    {
        "city": "Rome | Paris | Tokyo | Berlin | Sydney | Athens | Cairo | Vienna | Istanbul | Seoul",
        "land": "India | China | Brazil | Vietnam | Kenya | Egypt | Russia | Turkey | Japan | Thailand",
        "when": "next Monday | on May 4 | in June | for the holidays | this weekend | tomorrow | on Friday | in September | at Easter",
    },
    {
        "flight": """
            I need a flight to {city} {when}
            book a plane ticket to {city} {when}
            cheapest airfare from {city} {when}
            two seats on a nonstop flight to {city} {when}
            we want to fly to {city} {when}
            change my airline booking to {city} {when}
            is there a direct flight from {city} {when}
            a window seat on the plane to {city} {when}
            business class flight to {city} {when}
            which airport do planes to {city} leave from {when}
        """,
        "hotel": """
            book a hotel in {city} {when}
            a double room in {city} for two nights {when}
            find us a room with breakfast in {city} {when}
            we need accommodation in {city} {when}
            a quiet hotel near the center of {city} {when}
            reserve a suite with sea view in {city} {when}
            is there a hostel bed free in {city} {when}
            where can we stay overnight in {city} {when}
            late checkout from our hotel in {city} {when}
            a hotel room with a pool in {city} {when}
        """,
        "car": """
            rent a car in {city} {when}
            I want a rental car in {city} {when}
            car hire with automatic gears in {city} {when}
            pick up a hire car in {city} {when}
            a minivan rental for a road trip from {city} {when}
            we want to drive around {city} in a rental {when}
            an SUV with child seat to rent in {city} {when}
            reserve a convertible car in {city} {when}
            where do I return the rented car in {city} {when}
            car rental with insurance in {city} {when}
        """,
        "train": """
            train tickets to {city} {when}
            book a railway seat to {city} {when}
            a sleeper train to {city} {when}
            when does the express train to {city} leave {when}
            rail pass for trips around {city} {when}
            two train seats to {city} {when}
            which platform for the train from {city} {when}
            high-speed rail to {city} {when}
            change trains on the way to {city} {when}
            first class train ticket from {city} station {when}
        """,
        "visa": """
            do I need a visa for {land} {when}
            apply for a tourist visa to {land} {when}
            visa requirements for entering {land} {when}
            how long does the visa for {land} take {when}
            extend my visa in {land} {when}
            which embassy issues visas for {land} {when}
            documents for a visa application to {land} {when}
            a transit visa through {land} {when}
            my passport needs a visa stamp for {land} {when}
            electronic travel visa for {land} {when}
        """,
    },
)

_TEST = half(
    {
        "place": "Lima | Dublin | Prague | Miami | Oslo | Bangkok",
        "nation": "Cuba | Nepal | Ghana | Australia | Jordan | Peru",
        "date": "on July 12 | next Thursday | at Christmas | in autumn | on Sunday",
    },
    {
        "flight": """
            please find a cheap flight to {place} {date}
            plane tickets for three to {place} {date}
            I would like to fly from {place} {date}
            reserve an airline seat to {place} {date}
            are there direct flights to {place} {date}
        """,
        "hotel": """
            please reserve a hotel room in {place} {date}
            a cheap hotel for three nights in {place} {date}
            looking for accommodation with breakfast in {place} {date}
            a family room to stay at in {place} {date}
            any nice hotel by the beach of {place} {date}
        """,
        "car": """
            I would like to rent a small car in {place} {date}
            car rental at {place} airport {date}
            need a hire car to drive from {place} {date}
            a rented van or car for us in {place} {date}
            rental car pickup in {place} {date}
        """,
        "train": """
            please book a train to {place} {date}
            a railway ticket to {place} {date}
            night train from {place} {date}
            what time does the train leave for {place} {date}
            rail tickets to {place} station {date}
        """,
        "visa": """
            is a visa needed to enter {nation} {date}
            help me apply for a visa for {nation} {date}
            tourist visa application for {nation} {date}
            visa documents and passport for {nation} {date}
            how do I get a {nation} visa from the embassy {date}
        """,
    },
)

JOB = make_job(
    name="travel_request",
    domain="travel",
    specialization="task",
    tags=("travel", "booking", "trip"),
    description="Names what a traveller asks an agent to arrange.",
    table=ByLabel(_TRAIN, _TEST),
)
