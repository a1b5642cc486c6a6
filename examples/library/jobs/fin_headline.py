"""Which way a stock goes according to a market headline."""

from .engine import ByLabel, half, make_job

_TRAIN = half(
    {
        "firm": "Axion Motors | Brightwell Bank | Calder Pharma | Dunmore Steel | Everly Foods | Fenwick Software | Galaxo Energy"
        " | Hartley Airlines | Ironside Mining | Juno Semiconductors",
        "cause": "quarterly earnings | the annual report | a merger rumor | analyst comments | the sales update | trading news"
        " | new guidance | the profit report",
    },
    {
        "up": """
            {firm} shares surge after {cause}
            {firm} stock jumps on {cause}
            {firm} rallies to a record high after {cause}
            {firm} shares soar as {cause} beat expectations
            {firm} stock climbs following {cause}
            investors cheer {firm}, shares gain on {cause}
            {firm} rises sharply with {cause}
            {firm} stock upgraded, price leaps after {cause}
            {firm} shares advance, boosted by {cause}
            {firm} hits a new peak as buyers welcome {cause}
        """,
        "down": """
            {firm} shares plunge after {cause}
            {firm} stock tumbles on {cause}
            {firm} sinks to a yearly low after {cause}
            {firm} shares slump as {cause} miss estimates
            {firm} stock drops following {cause}
            investors dump {firm}, shares lose on {cause}
            {firm} falls sharply with {cause}
            {firm} stock downgraded, price slides after {cause}
            {firm} shares decline, hurt by {cause}
            {firm} hits the bottom as sellers fear {cause}
        """,
        "flat": """
            {firm} shares unchanged after {cause}
            {firm} stock steady on {cause}
            {firm} trades flat following {cause}
            {firm} shares barely move as {cause} match estimates
            {firm} stock holds steady despite {cause}
            investors shrug, {firm} shares stay put on {cause}
            {firm} ends little changed with {cause}
            {firm} stock rating kept at hold, price stable after {cause}
            {firm} shares hover sideways, ignoring {cause}
            {firm} closes where it opened after {cause}
        """,
    },
)

_TEST = half(
    {
        "name": "Kestrel Telecom | Lumen Retail | Marlow Insurance | Nordholm Shipping | Oakridge Chemicals | Pellman Media",
        "news": "third quarter results | a revenue forecast | the earnings call | takeover talks | the outlook | dividend plans",
    },
    {
        "up": """
            {name} stock surges on {news}
            {name} shares climb to an all-time high with {news}
            {name} shares jump as {news} beat forecasts
            {name} gains, shares rise after {news}
            {name} rally continues as {news} boost the stock
        """,
        "down": """
            {name} stock plunges on {news}
            {name} shares drop to a multi-year low with {news}
            {name} shares tumble as {news} miss forecasts
            {name} loses, shares fall after {news}
            {name} slump continues as {news} hurt the stock
        """,
        "flat": """
            {name} stock unchanged on {news}
            {name} shares hold steady at the same level with {news}
            {name} shares flat as {news} match forecasts
            {name} stable, shares barely changed after {news}
            {name} keeps moving sideways as {news} leave the stock steady
        """,
    },
)

JOB = make_job(
    name="fin_headline",
    domain="finance",
    specialization="task",
    tags=("finance", "stock", "market"),
    description="Says which way a stock goes according to a headline.",
    table=ByLabel(_TRAIN, _TEST),
)
