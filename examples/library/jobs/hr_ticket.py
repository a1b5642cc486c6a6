"""Which topic an employee's message to the HR desk is about."""

from .engine import ByLabel, half, make_job

_TRAIN = half(
    {
        "me": "Dear HR, | Hi HR team, | HR question: | As an employee, | To human resources: | As a new hire, | My colleague says HR knows:"
        " | HR desk, | For my staff file:",
        "month": "January | March | April | June | August | October | December | the spring",
        "topic": "leadership | first aid | Excel | public speaking | project management | Spanish | negotiation | data analysis",
        "gear": "monitor | keyboard | office chair | headset | laptop | docking station | desk | work phone",
    },
    {
        "leave": """
            {me} I request vacation days in {month}
            {me} how many days off do I have left in {month}
            {me} I want to take parental leave from {month}
            {me} please approve my annual leave in {month}
            {me} I call in sick, doctor's note until {month}
            {me} can I carry my holiday days over to {month}
            {me} I need time off for a wedding in {month}
            {me} my maternity leave starts in {month}
            {me} unpaid leave for all of {month} please
            {me} cancel my vacation request for {month}
        """,
        "payroll": """
            {me} my salary for {month} is missing
            {me} my payslip of {month} shows wrong tax
            {me} overtime was not paid in {month}
            {me} when is the salary paid in {month}
            {me} please use my new bank account for wages from {month}
            {me} the bonus was missing from my {month} paycheck
            {me} I need my {month} pay stub
            {me} my hourly wage in {month} was wrong
            {me} too much tax withheld from my {month} pay
            {me} send me the payroll statement of {month}
        """,
        "training": """
            {me} I want to attend a {topic} course
            {me} is there a {topic} training in {month}
            {me} please enroll me in the {topic} workshop
            {me} will the company fund my {topic} certificate
            {me} sign me up for the {topic} seminar in {month}
            {me} I must repeat the mandatory {topic} training
            {me} where is the e-learning module on {topic}
            {me} I want to learn {topic}, any classes
            {me} who teaches the {topic} course in {month}
            {me} can I get a mentor to develop {topic} skills
        """,
        "benefits": """
            {me} when does my health insurance start, {month}
            {me} how do I join the pension plan in {month}
            {me} add my spouse to the dental plan from {month}
            {me} am I eligible for the gym membership in {month}
            {me} does the medical plan cover glasses in {month}
            {me} explain the retirement plan contributions of {month}
            {me} I want to change my health plan in {month}
            {me} how does the employee stock plan work in {month}
            {me} is life insurance part of our benefits from {month}
            {me} enroll me in the childcare benefit in {month}
        """,
        "equipment": """
            {me} my {gear} is broken and must be replaced
            {me} I need a new {gear} for my workplace
            {me} please order a {gear} for my home office
            {me} where do I return the {gear} of the company
            {me} can I get a second {gear}
            {me} my {gear} arrived damaged
            {me} the {gear} I was given is too old, replace it
            {me} I am still waiting for a {gear} at my workplace
            {me} request for a {gear} from {month}
            {me} an ergonomic {gear} is needed for my back
        """,
    },
)

_TEST = half(
    {
        "ask": "Hello HR, | HR colleagues, | For the HR department: | As a staff member, | Question for HR:",
        "when": "February | May | July | September | November",
        "subject": "coding | safety | time management | sales | writing",
        "tool": "mouse | webcam | standing desk | printer | company tablet | badge reader",
    },
    {
        "leave": """
            {ask} I would like vacation in {when}
            {ask} can I have two days off in {when}
            {ask} I am planning paternity leave for {when}
            {ask} how much annual leave remains in {when}
            {ask} I am sick and need leave until {when}
        """,
        "payroll": """
            {ask} I did not get my salary in {when}
            {ask} there is a mistake in my {when} payslip
            {ask} my overtime pay for {when} is missing
            {ask} wrong tax on the {when} paycheck
            {ask} my wages of {when} went to an old bank account
        """,
        "training": """
            {ask} can I join a {subject} training
            {ask} I would like to take a course in {subject}
            {ask} which {subject} workshop is offered in {when}
            {ask} please register me for {subject} classes
            {ask} I want to improve my {subject} skills with a seminar
        """,
        "benefits": """
            {ask} what does my health insurance cover in {when}
            {ask} I want to enroll in the pension plan from {when}
            {ask} are dental benefits included from {when}
            {ask} can my family join the medical plan in {when}
            {ask} how do retirement benefits change in {when}
        """,
        "equipment": """
            {ask} I need a replacement for my broken {tool}
            {ask} could I get a new {tool} at my desk
            {ask} please order me a {tool} for the office
            {ask} the {tool} at my workplace is damaged
            {ask} I have to return the {tool} I was given
        """,
    },
)

JOB = make_job(
    name="hr_ticket",
    domain="hr",
    specialization="task",
    tags=("hr", "employee", "office"),
    description="Names the topic of an employee's message to the HR desk.",
    table=ByLabel(_TRAIN, _TEST),
)
