"""Programs that call the gateway with what people already have. Each runs against `smoa up` as it is."""
