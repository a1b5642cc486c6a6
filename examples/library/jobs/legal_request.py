"""Which practice area a would-be client of a law firm needs."""

from .engine import ByLabel, half, make_job

_TRAIN = half(
    {
        "ask": "I need a lawyer: | Looking for an attorney, | Can your law firm help? | I want legal advice, | Please represent me,"
        " | Seeking legal counsel: | Do I need to go to court? | What are my legal rights?",
        "kin": "wife | husband | ex-wife | ex-husband | spouse | ex-partner | former wife | former husband",
        "crime": "theft | assault | drunk driving | burglary | fraud | drug possession | shoplifting | vandalism",
        "country": "the United States | Canada | Britain | Australia | Sweden | Italy | Belgium | Austria",
        "home": "apartment | house | flat | farm | condo | garden plot | cottage | townhouse",
        "staff": "boss | employer | manager | company | supervisor | foreman | former boss | workplace",
    },
    {
        "family": """
            {ask} my {kin} wants a divorce
            {ask} my {kin} and I fight over child custody
            {ask} my {kin} refuses to pay child support
            {ask} I am separating from my {kin}
            {ask} my {kin} will not let me see our children
            {ask} I want alimony from my {kin}
            {ask} my {kin} and I want to adopt a baby
            {ask} my marriage to my {kin} is over
            {ask} my {kin} took the kids away
            {ask} I must agree on parental visits with my {kin}
        """,
        "criminal": """
            {ask} I was arrested for {crime}
            {ask} the police charged me with {crime}
            {ask} my son is in jail for {crime}
            {ask} I am accused of {crime}
            {ask} my brother needs bail after a {crime} arrest
            {ask} the prosecutor wants a guilty plea for {crime}
            {ask} I face prison because of {crime}
            {ask} I have a criminal record for {crime}
            {ask} detectives question me about {crime}
            {ask} my trial for {crime} is next month
        """,
        "immigration": """
            {ask} my visa for {country} was refused
            {ask} I want asylum in {country}
            {ask} I applied for citizenship of {country}
            {ask} they may deport me from {country}
            {ask} my residence permit in {country} expired
            {ask} I want a green card to live in {country}
            {ask} I am an undocumented immigrant in {country}
            {ask} I want to bring my parents to {country} as immigrants
            {ask} my refugee claim in {country} was denied
            {ask} the border officers of {country} rejected my papers
        """,
        "property": """
            {ask} my landlord wants to evict me from my {home}
            {ask} the neighbor built a fence on the land of my {home}
            {ask} the tenant of my {home} does not pay rent
            {ask} I am buying a {home} and the deed is wrong
            {ask} the seller hid defects of the {home}
            {ask} my landlord keeps the deposit of the {home}
            {ask} there is a boundary dispute about my {home}
            {ask} the lease on my {home} was broken
            {ask} the title of the {home} I own is contested
            {ask} the bank forecloses the mortgage on my {home}
        """,
        "employment": """
            {ask} my {staff} fired me unfairly
            {ask} my {staff} owes me unpaid wages
            {ask} my {staff} discriminates against me at work
            {ask} I was dismissed by my {staff} without notice
            {ask} my {staff} refuses to pay overtime
            {ask} my {staff} harasses me on the job
            {ask} my {staff} laid me off while pregnant
            {ask} my {staff} broke my employment contract
            {ask} my {staff} punished me as a whistleblower at work
            {ask} I lost my job and my {staff} gives no severance
        """,
    },
)

_TEST = half(
    {
        "plea": "Could a solicitor help me? | I am searching for a good lawyer. | Is there an attorney for this? | Legal help wanted,"
        " | Should I sue or settle?",
        "mate": "my ex | my partner | the father of my kids | the mother of my kids | my estranged wife",
        "deed": "robbery | stealing a car | a bar fight | forgery | tax evasion",
        "land": "Germany | Norway | New Zealand | Ireland | Spain",
        "place": "studio | bungalow | rental unit | family home | parcel of land",
        "chief": "team leader | firm | old employer | factory boss | head of department",
    },
    {
        "family": """
            {plea} I am getting divorced from {mate}
            {plea} custody of our children is disputed by {mate}
            {plea} {mate} pays no child support at all
            {plea} {mate} wants to end the marriage
            {plea} {mate} keeps our daughter from me since the divorce
        """,
        "criminal": """
            {plea} police arrested me over {deed}
            {plea} criminal charges for {deed} were filed against me
            {plea} my cousin sits in jail, accused of {deed}
            {plea} I may go to prison for {deed}
            {plea} they say I am guilty of {deed}, the trial is soon
        """,
        "immigration": """
            {plea} my visa ran out and {land} may deport me
            {plea} my application for asylum in {land} failed
            {plea} I want to become a citizen of {land}
            {plea} a residence permit for {land} was denied to me
            {plea} my fiancee wants to immigrate to {land}
        """,
        "property": """
            {plea} the landlord is evicting us from the {place}
            {plea} my tenant refuses to leave the {place} and owes rent
            {plea} the neighbor claims a strip of land from my {place}
            {plea} the deed and title of my {place} are in dispute
            {plea} the lease for the {place} was cancelled by the landlord
        """,
        "employment": """
            {plea} I got fired by my {chief} for no reason
            {plea} my {chief} never paid my overtime wages
            {plea} I face discrimination at work from my {chief}
            {plea} my {chief} dismissed me after sick leave from the job
            {plea} my {chief} violates my employment contract
        """,
    },
)

JOB = make_job(
    name="legal_request",
    domain="legal",
    specialization="task",
    tags=("legal", "lawyer", "intake"),
    description="Names the practice area for a matter a client brings to a law firm.",
    table=ByLabel(_TRAIN, _TEST),
)
