"""What kind of values a table column holds."""

from .engine import ByLabel, half, make_job

_TRAIN = half(
    {
        "first": "anna | john | maria | peter | lucy | omar | chen | david | ingrid | paul",
        "last": "smith | garcia | novak | miller | rossi | tanaka | brown | silva | weber | clark",
        "host": "gmail | acme | example | outlook | bluecorp | mailbox | startup | redshop",
        "tld": "com | org | net | io | co | de | fr | eu",
        "page": "about | products | login | blog | news | cart | contact | images",
        "day": "01 | 03 | 06 | 08 | 11 | 14 | 17 | 20 | 23 | 25",
        "num": "10 | 02 | 04 | 05 | 07 | 09 | 12",
        "month": "Jan | Mar | Apr | Jun | Aug | Oct | Nov | Dec",
        "oct": "192 | 172 | 127 | 185 | 64 | 203 | 91 | 151",
    },
    {
        "email": """
            {first}.{last}@{host}.{tld}
            {first}@{host}.{tld}
            {last}~~@{host}.{tld}
            {first}_{last}@{host}.{tld}
            {first}{last}@{host}.com
            {first}.~~@mail.{host}.{tld}
            info@{host}{last}.{tld}
            {first}+{page}@{host}.com
            {page}@{host}.{tld}
            {last}.{first}~@{host}.org
        """,
        "phone": """
            555-~~~-~~~~
            (~~~) 555-~~~~
            +1 4~~ 555 ~~~~
            0~~~ ~~~~~~
            +44 20 ~~~~ ~~~~
            +49 30 ~~~~~~~
            0{oct}-~~~~~~
            1-800-~~~-~~~~
            +33 1 ~~ ~~ ~~ ~~
            +1-{oct}-~~~-~~~~
        """,
        "date": """
            202~-{num}-{day}
            {day}/{num}/201~
            {num}/{day}/199~
            {day} {month} 202~
            {month} {day}, 201~
            19~~-{num}-{day}
            {day}-{num}-200~
            {month} 202~
            200~/{num}/{day}
            {day}.{num}.199~
        """,
        "url": """
            https://www.{host}.{tld}/{page}
            http://{host}.{tld}
            https://{host}.{tld}/{page}/~~~
            www.{host}.{tld}/{page}
            https://{page}.{host}.{tld}/
            http://www.{host}{last}.{tld}/{page}.html
            https://{host}.{tld}/?id=~~~~
            https://shop.{host}.{tld}/{page}
            http://{last}.{tld}/{page}
            https://api.{host}.{tld}/v~/{page}
        """,
        "money": """
            $~~.~~
            ~~~.~~ USD
            EUR ~~,~~
            $1,~~~.~~
            US$ ~~.~~
            ~~ GBP
            USD 2,~~~
            ~~.~~ EUR
            -$~~.~~
            ~~~,~~ EUR
        """,
        "ip": """
            {oct}.16~.~.1~
            10.~.~.2~
            {oct}.1~.2~.3~
            {oct}.4~.~.1~~
            {oct}.1~~.2~.~
            10.2~.1~~.~
            {oct}.~.~.1~~
            {oct}.9~.8~.7~
            {oct}.5~.1~~.2
            {oct}.2~.~.1
        """,
    },
)

_TEST = half(
    {
        "given": "emma | lucas | nora | felix | sara | hugo",
        "family": "jones | lopez | kowalski | jensen | dubois | fischer",
        "site": "yahoo | contoso | greenfarm | quickmail | citybank | bookworld",
        "zone": "edu | us | uk | info | es | biz",
        "path": "help | account | search | docs | events | pricing",
        "dd": "18 | 13 | 16 | 19 | 22 | 27",
        "mm": "1 | 2 | 5 | 7 | 9",
        "mon": "February | May | July | September | January",
        "net": "198 | 176 | 83 | 212 | 145 | 37",
    },
    {
        "email": """
            {given}-{family}@{site}.{zone}
            {given}@{site}{family}.{zone}
            {given}.{family}@my.{site}.{zone}
            {given}~~~@{site}.{zone}
            {path}.team@{site}.{zone}
        """,
        "phone": """
            ~~~-~~~-~~~~
            (0~~) ~~~ ~~~~
            +34 6~~ ~~~ ~~~
            +1 (6~~) ~~~-~~~~
            07~~~ ~~~ ~~~
        """,
        "date": """
            {dd} {mon} 201~
            {mon} {dd}, 202~
            {dd}/{mm}/202~
            201~-{mm}-{dd}
            {dd}.{mm}.201~
        """,
        "url": """
            https://www.{site}.{zone}/{path}/{family}
            http://my.{site}.{zone}/{path}
            https://{path}.{site}.{zone}/~~
            www.{site}{family}.{zone}
            https://{site}.{zone}/{path}.php
        """,
        "money": """
            $~,~~~.00
            ~~.~~ CHF
            GBP ~~.~~
            $~.~~
            CAD ~~~.~~
        """,
        "ip": """
            {net}.2~.1~.6~
            {net}.~.1~~.4~
            {net}.10~.~.~~
            {net}.7~.3~.1~~
            {net}.1~~.~.~
        """,
    },
)

JOB = make_job(
    name="column_type",
    domain="data",
    specialization="format",
    tags=("data", "table", "column"),
    description="Names the kind of values in a table column, from three of them.",
    table=ByLabel(_TRAIN, _TEST, repeat=3),
)
