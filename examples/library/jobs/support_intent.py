"""What a customer of an online shop wants from support."""

from .engine import ByLabel, half, make_job

_TRAIN = half(
    {
        "hi": "Hi, | Hello, | Hey there, | Dear support team, | Good morning, | Please help, | Hello customer service, | Hi team,",
        "item": "sweater | blender | desk lamp | backpack | toaster | running shoes | book set | phone case | jacket | kettle",
        "num": "A~~~~ | ORD-~~~~ | B~~~~ | X~~~ | WEB~~~ | C-~~~ | Q~~~~ | Z~~~",
    },
    {
        "refund": """
            {hi} I want my money back for the {item}, order {num}
            {hi} please refund the {item} from order {num}
            {hi} I returned the {item} but no refund came, order {num}
            {hi} the {item} of order {num} is broken, I want a refund
            {hi} how do I return the {item} and get reimbursed, order {num}
            {hi} my refund for order {num} ({item}) is still missing
            {hi} I sent the {item} back, when do I get my money, {num}
            {hi} give me my money back, the {item} in {num} is defective
            {hi} I ask for reimbursement of the {item}, {num}
            {hi} the {item} does not fit, refund order {num} please
        """,
        "login": """
            {hi} I cannot log in to my account to see order {num}
            {hi} I forgot my password, my customer account is {num}
            {hi} my account {num} is locked and I cannot sign in
            {hi} the password reset email for account {num} never came
            {hi} login fails with wrong password on account {num}
            {hi} I can't access my profile {num} to buy the {item}
            {hi} the verification code to sign in to {num} does not work
            {hi} my username {num} is not recognized at login
            {hi} please unlock my account {num}, too many password attempts
            {hi} I am logged out of {num} and cannot log back in
        """,
        "shipping": """
            {hi} where is my {item}, order {num} has not arrived
            {hi} the delivery of order {num} with the {item} is late
            {hi} the tracking number for {num} shows no movement
            {hi} when will the {item} be delivered, order {num}
            {hi} my parcel {num} with the {item} is lost
            {hi} has the {item} of {num} been shipped yet
            {hi} the courier did not bring the package {num}
            {hi} the shipment of the {item} is stuck, {num}
            {hi} order {num} went to a wrong delivery address
            {hi} how long does delivery of the {item} take, order {num}
        """,
        "cancel": """
            {hi} please cancel my order {num} for the {item}
            {hi} I changed my mind about the {item}, cancel {num}
            {hi} I ordered the {item} by mistake, please cancel it, {num}
            {hi} stop order {num} before it leaves, I do not want the {item}
            {hi} I would like to cancel the {item} in order {num}
            {hi} can I still cancel order {num}
            {hi} cancel my subscription {num} right away
            {hi} I no longer need the {item}, please cancel {num}
            {hi} please call off my purchase {num} of the {item}
            {hi} how can I cancel the {item} order {num} today
        """,
        "billing": """
            {hi} I was charged twice for the {item}, order {num}
            {hi} the invoice of order {num} shows a wrong amount
            {hi} my credit card was billed twice for {num}
            {hi} please send me an invoice for the {item}, {num}
            {hi} there is an unknown charge on my card for {num}
            {hi} the bill for the {item} is higher than shown, {num}
            {hi} my card payment for {num} was declined
            {hi} the invoice {num} lacks my tax number
            {hi} why was I overcharged for the {item} on bill {num}
            {hi} I need a receipt with billing address for {num}
        """,
    },
)

_TEST = half(
    {
        "greet": "Good evening, | Hello support, | To whom it may concern, | Greetings, | Excuse me,",
        "thing": "coffee maker | winter coat | headset stand | yoga mat | watch strap | rug",
        "code": "N~~~~ | NO-~~~ | K~~~~~ | SHOP~~~ | D~~~",
    },
    {
        "refund": """
            {greet} I would like a refund for my {thing}, {code}
            {greet} the {thing} came damaged, I want my money back, {code}
            {greet} when will the money for the returned {thing} be refunded, {code}
            {greet} {code}: return accepted for the {thing} but no refund yet
            {greet} please reimburse me for the faulty {thing}, {code}
        """,
        "login": """
            {greet} logging in to account {code} is impossible
            {greet} I lost my password and need a reset for account {code}
            {greet} sign in with user {code} says wrong password
            {greet} account {code} got locked after login attempts
            {greet} I am unable to access my account {code}, password forgotten
        """,
        "shipping": """
            {greet} my package {code} with the {thing} still has not been delivered
            {greet} the tracking of parcel {code} is not updated
            {greet} when does the {thing} arrive, delivery {code}
            {greet} the {thing} was shipped weeks ago, where is it, {code}
            {greet} shipment {code} is delayed, the courier never came
        """,
        "cancel": """
            {greet} I want to cancel the order of the {thing}, {code}
            {greet} order {code} was a mistake, cancel it please
            {greet} please cancel {code}, I do not want the {thing} anymore
            {greet} cancel the {thing} before it goes out, {code}
            {greet} is it possible to cancel purchase {code}
        """,
        "billing": """
            {greet} my card was charged two times for {code}
            {greet} the amount on invoice {code} is incorrect
            {greet} I need the invoice for the {thing}, {code}
            {greet} an extra charge appears on my bill for {code}
            {greet} you overcharged my credit card for the {thing}, {code}
        """,
    },
)

JOB = make_job(
    name="support_intent",
    domain="support",
    specialization="task",
    tags=("support", "customer", "order"),
    description="Names what a customer of an online shop wants.",
    table=ByLabel(_TRAIN, _TEST),
)
