"""Which aspect of a gadget a review sentence is about."""

from .engine import ByLabel, half, make_job

_TRAIN = half(
    {
        "gadget": "phone | tablet | laptop | smartwatch | handheld console | e-reader | fitness band | music player | camera | notebook",
        "wear": "headphones | earbuds | smartwatch band | VR headset | headset | fitness bracelet | smart glasses | earphones",
        "note": "Five stars, | Honest review: | After a month of use, | Sadly, | Bought last week, | My verdict: | Pros and cons: | Overall,"
        " | To be fair,",
    },
    {
        "battery": """
            {note} the battery of this {gadget} lasts all day
            {note} this {gadget} needs charging twice a day
            {note} the {gadget} battery drains far too fast
            {note} charging the {gadget} takes only an hour
            {note} the {gadget} dies after three hours without charger
            {note} this {gadget} runs two days on a single charge
            {note} the power of the {gadget} runs out quickly
            {note} battery life on the {gadget} is superb
            {note} the {gadget} charger gets hot and charges slowly
            {note} the {gadget} drops from full charge to ten percent
        """,
        "screen": """
            {note} the screen of the {gadget} is bright and sharp
            {note} the {gadget} display has dead pixels
            {note} colors on the {gadget} display are vivid
            {note} the {gadget} screen scratches easily
            {note} the touchscreen of this {gadget} is responsive
            {note} the {gadget} display is too dim in sunlight
            {note} the resolution of the {gadget} screen is crisp
            {note} the {gadget} panel flickers at low brightness
            {note} the glass of the {gadget} display cracked
            {note} pictures look washed out on the {gadget} display
        """,
        "sound": """
            {note} the sound of the {wear} is rich and clear
            {note} the bass on these {wear} is weak
            {note} the speaker of the {gadget} is too quiet
            {note} music on the {wear} sounds tinny
            {note} the {gadget} speakers crackle at high volume
            {note} audio quality of the {wear} is amazing
            {note} noise cancelling on the {wear} works well
            {note} the {gadget} volume is loud enough for a room
            {note} voices sound muffled in the {wear}
            {note} the treble of the {wear} is harsh to the ear
        """,
        "price": """
            {note} the {gadget} is far too expensive
            {note} this {gadget} is great value for money
            {note} the price of the {gadget} is hard to beat
            {note} you pay a lot of money for this {gadget}
            {note} the {gadget} is cheap and a bargain
            {note} these {wear} cost more than they are worth
            {note} the {wear} were a real deal at the discount
            {note} the {gadget} is overpriced
            {note} not worth the cost, find a cheaper {gadget}
            {note} an affordable {gadget} for a small budget
        """,
        "comfort": """
            {note} the {wear} feel soft and comfortable to wear
            {note} the {wear} press painfully on the head
            {note} the {wear} fit snugly and never slip
            {note} the strap of the {wear} irritates after hours of wearing
            {note} the {wear} are light and easy to wear
            {note} the cushions of the {wear} are comfy
            {note} the {gadget} is awkward and heavy to hold
            {note} the {wear} get sweaty and uncomfortable
            {note} the {gadget} sits nicely in the hand
            {note} the {wear} hurt after wearing them an hour
        """,
    },
)

_TEST = half(
    {
        "device": "gaming laptop | mobile | drone remote | smart clock | pocket projector | dictation device",
        "set": "in-ear buds | gaming headset | sport band | over-ear cans | wrist tracker",
        "intro": "Review: | Three stars. | Update: | First impression: | In short,",
    },
    {
        "battery": """
            {intro} {device} battery lasts for days
            {intro} I have to charge the {device} constantly
            {intro} the {device} battery is empty by noon
            {intro} quick charging on the {device} is great
            {intro} poor battery life on this {device}
        """,
        "screen": """
            {intro} {device} screen is sharp with vivid colors
            {intro} the display on the {device} is dim
            {intro} the {device} screen flickers and has bad pixels
            {intro} beautiful, bright display for a {device}
            {intro} the touchscreen on the {device} got scratched
        """,
        "sound": """
            {intro} the bass and treble of the {set} are great
            {intro} sound from the {set} is muffled
            {intro} the speakers on the {device} are loud and clear
            {intro} the {set} have awful audio quality
            {intro} music sounds wonderful through the {set}
        """,
        "price": """
            {intro} the {device} costs too much
            {intro} good price for such a {device}
            {intro} the {set} are expensive for what you get
            {intro} a cheap {device}, excellent value
            {intro} save your money, this {device} is overpriced
        """,
        "comfort": """
            {intro} the {set} are comfortable all day long
            {intro} wearing the {set} hurts after an hour
            {intro} the {set} fit well and feel light
            {intro} soft padding makes the {set} comfy to wear
            {intro} the {set} feel tight and uncomfortable
        """,
    },
)

JOB = make_job(
    name="review_aspect",
    domain="support",
    specialization="task",
    tags=("review", "gadget", "product"),
    description="Names the aspect of a gadget a review sentence is about.",
    table=ByLabel(_TRAIN, _TEST),
)
