"""Which spending category a bank card statement line belongs to."""

from .engine import ByLabel, half, make_job

_TRAIN = half(
    {
        "head": "POS ~~~~ | CARD PURCHASE ~~~~ | VISA DEBIT ~~~~ | CARD *~~~~ | CONTACTLESS ~~~~ | DEBIT CARD ~~~~ | ACH ~~~~ | PURCHASE ~~~~",
        "city": "LISBON | DENVER | LEEDS | MUNICH | TORONTO | OSLO | BOSTON | PRAGUE",
        "sum": "54.20 EUR | 12.75 USD | 33.10 GBP | 88.00 EUR | 7.45 USD | 140.60 CAD | 25.99 USD | 61.30 EUR",
        "shop": "FRESHMART | GREENLEAF | DAILYGOODS | VALUEPLUS | SUNNYSIDE | TOWNSEND | HARVEST LANE | BUDGET KING",
        "oil": "SHELTON | PETROMAX | ROADSTAR | OCTANIA | TEXOIL | GULFWAY | TURBO | PUMPCO",
        "cook": "BELLA ROMA | GOLDEN WOK | JOES | LA PALOMA | RED LANTERN | OLD TOWN | BLUE PLATE | MAMA ROSA",
        "trip": "SKYLINK | GLOBETREK | AEROLUX | NORTHWIND | SUNWAYS | TRANSALP | VOYAGO | STARLITE",
        "grid": "CITYWIDE | NORDIC | METROLINE | UNIFIED | EVERBRIGHT | CENTRAL | REGIONAL | PIONEER",
    },
    {
        "groceries": """
            {head} {shop} SUPERMARKET {city} {sum}
            {head} {shop} GROCERY STORE {city} {sum}
            {head} {shop} FOOD MARKET ~~ {city} {sum}
            {head} {shop} FRUIT AND VEG {city} {sum}
            {head} {shop} BUTCHER {city} {sum}
            {head} {shop} GROCERS {city} {sum}
            {head} {shop} HYPERMARKET ~~~ {city} {sum}
            {head} {shop} ORGANIC FOODS {city} {sum}
            {head} {shop} BAKERY AND DAIRY {city} {sum}
            {head} {shop} MINI MARKET {city} {sum}
        """,
        "fuel": """
            {head} {oil} FUEL STN 00~~~ {city} {sum}
            {head} {oil} PETROL STATION {city} {sum}
            {head} {oil} GAS STATION ~~ {city} {sum}
            {head} {oil} DIESEL {city} {sum}
            {head} {oil} GASOLINE PUMP ~ {city} {sum}
            {head} {oil} SERVICE STATION FUEL {city} {sum}
            {head} {oil} UNLEADED PETROL {city} {sum}
            {head} {oil} OIL AND GAS STN {city} {sum}
            {head} {oil} MOTORWAY FUEL {city} {sum}
            {head} {oil} PAY AT PUMP {city} {sum}
        """,
        "dining": """
            {head} {cook} RESTAURANT {city} {sum}
            {head} {cook} CAFE {city} {sum}
            {head} {cook} PIZZERIA {city} {sum}
            {head} {cook} BURGER GRILL {city} {sum}
            {head} {cook} SUSHI BAR {city} {sum}
            {head} {cook} COFFEE HOUSE ~~ {city} {sum}
            {head} {cook} DINER {city} {sum}
            {head} {cook} TRATTORIA {city} {sum}
            {head} {cook} PUB AND KITCHEN {city} {sum}
            {head} {cook} STEAKHOUSE {city} {sum}
        """,
        "travel": """
            {head} {trip} AIRLINES TICKET {city} {sum}
            {head} {trip} HOTEL {city} {sum}
            {head} {trip} RAILWAY TICKETS {city} {sum}
            {head} {trip} CAR RENTAL {city} {sum}
            {head} {trip} AIRWAYS ~~~ {city} {sum}
            {head} {trip} TRAVEL AGENCY {city} {sum}
            {head} {trip} HOSTEL BOOKING {city} {sum}
            {head} {trip} TAXI AIRPORT {city} {sum}
            {head} {trip} CRUISES {city} {sum}
            {head} {trip} RESORT AND SPA {city} {sum}
        """,
        "utilities": """
            {head} {grid} ELECTRIC BILL {city} {sum}
            {head} {grid} WATER SUPPLY {city} {sum}
            {head} {grid} POWER COMPANY {city} {sum}
            {head} {grid} BROADBAND INTERNET {city} {sum}
            {head} {grid} HEATING BILL {city} {sum}
            {head} {grid} TELECOM MONTHLY {city} {sum}
            {head} {grid} SEWER AND WASTE {city} {sum}
            {head} {grid} ENERGY BILL {city} {sum}
            {head} {grid} PHONE BILL {city} {sum}
            {head} {grid} ELECTRICITY {city} {sum}
        """,
    },
)

_TEST = half(
    {
        "mark": "PAYMENT ~~~~ | MASTERCARD ~~~~ | TRN ~~~~~ | CHIP AND PIN ~~~~ | CARD PAYMENT ~~~~",
        "town": "MADRID | CHICAGO | BRISTOL | VIENNA | DUBLIN",
        "cost": "19.80 EUR | 45.15 USD | 72.40 GBP | 9.95 EUR | 110.25 USD",
        "store": "CORNER | BASKET | FAMILY | SAVEMORE | LITTLE GARDEN",
        "brand": "ROUTE NINE | ENERGOL | FASTLANE | HIGHWAY STAR | APEXO",
        "house": "LUIGIS | THE HUNGRY FOX | SPICE PALACE | EL TORO | OCEAN VIEW",
        "line": "WANDERLY | BLUEJET | ATLANTIC | CLOUDNINE | COMPASS",
        "net": "STATEWIDE | HOMELINK | MUNICIPAL | SOUTHERN | PUBLIC",
    },
    {
        "groceries": """
            {mark} {store} GROCERY {town} {cost}
            {mark} {store} SUPER MARKET FOODS {town} {cost}
            {mark} {store} FRESH FOOD STORE {town} {cost}
            {mark} {store} VEGETABLE MARKET {town} {cost}
            {mark} {store} BAKERY {town} {cost}
        """,
        "fuel": """
            {mark} {brand} PETROL {town} {cost}
            {mark} {brand} FUEL STATION {town} {cost}
            {mark} {brand} GAS AND DIESEL {town} {cost}
            {mark} {brand} GASOLINE STN ~~ {town} {cost}
            {mark} {brand} FUEL PUMP ~~ {town} {cost}
        """,
        "dining": """
            {mark} {house} PIZZA RESTAURANT {town} {cost}
            {mark} {house} COFFEE BAR {town} {cost}
            {mark} {house} BISTRO AND GRILL {town} {cost}
            {mark} {house} BURGERS {town} {cost}
            {mark} {house} SUSHI KITCHEN {town} {cost}
        """,
        "travel": """
            {mark} {line} AIRLINE {town} {cost}
            {mark} {line} HOTELS {town} {cost}
            {mark} {line} RAIL TICKET {town} {cost}
            {mark} {line} RENTAL CARS {town} {cost}
            {mark} {line} TRAVEL BOOKING {town} {cost}
        """,
        "utilities": """
            {mark} {net} ELECTRIC POWER {town} {cost}
            {mark} {net} WATER BILL {town} {cost}
            {mark} {net} INTERNET BILL {town} {cost}
            {mark} {net} ENERGY AND HEATING {town} {cost}
            {mark} {net} TELECOM PHONE {town} {cost}
        """,
    },
)

JOB = make_job(
    name="fin_category",
    domain="finance",
    specialization="domain",
    tags=("finance", "bank", "transaction"),
    description="Names the spending category of a bank card statement line.",
    table=ByLabel(_TRAIN, _TEST),
)
