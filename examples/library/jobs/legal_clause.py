"""What a contract clause is about."""

from .engine import ByLabel, half, make_job

_TRAIN = half(
    {
        "party": "the Supplier | the Client | the Contractor | the Licensee | the Licensor | the Consultant | the Distributor | each Party",
        "span": "thirty days | sixty days | ninety days | two years | five years | twelve months | fourteen days | ten business days",
        "land": "the State of New York | England and Wales | the State of California | Ontario | Germany | Singapore | France"
        " | the State of Texas",
    },
    {
        "confidentiality": """
            {party} shall keep all Confidential Information secret for {span}.
            {party} shall not disclose proprietary information to any third party for {span}.
            For {span} after disclosure, {party} must protect trade secrets in strict confidence.
            {party} may not reveal the confidential terms hereof during {span}.
            Confidential documents shall be returned or destroyed by {party} within {span}.
            {party} agrees to a duty of non-disclosure lasting {span}.
            All information marked confidential remains secret for {span} and {party} shall guard it.
            {party} shall restrict access to Confidential Information to its employees for {span}.
            Nondisclosure obligations bind {party} for {span}.
            {party} shall not publish or disclose secret know-how for {span}.
        """,
        "termination": """
            {party} may terminate this Agreement upon {span} written notice.
            This Agreement shall end if {party} fails to cure a breach within {span}.
            Either renewal or termination by {party} requires notice of {span}.
            {party} may cancel this Agreement for convenience with {span} notice.
            Upon material breach, {party} may terminate immediately if uncured for {span}.
            This Agreement expires after {span} unless terminated earlier by {party}.
            Termination by {party} takes effect {span} after notice.
            {party} is entitled to terminate early by giving {span} prior notice.
            On expiry of {span} the term ends and {party} is released.
            Insolvency lasting {span} allows {party} to end this Agreement.
        """,
        "payment": """
            {party} shall pay all invoices within {span} of receipt.
            Fees are due to {party} in {span} from the invoice date.
            Late payments to {party} accrue interest after {span}.
            {party} will issue an invoice and the amount is payable within {span}.
            The purchase price shall be paid by {party} in {span}.
            {party} shall remit the monthly fee no later than {span} after billing.
            Unpaid invoices of {party} older than {span} bear interest.
            {party} shall reimburse expenses within {span} of the invoice.
            Payment of the fee by {party} is due in {span}.
            {party} pays a deposit now and the balance of the price in {span}.
        """,
        "liability": """
            {party} shall not be liable for indirect damages arising within {span}.
            The total liability of {party} is limited to fees paid in {span}.
            {party} shall indemnify and hold harmless the other for losses over {span}.
            In no event shall {party} be liable for lost profits or consequential damages in {span}.
            Liability of {party} for negligence is capped at the amount of {span} of fees.
            {party} accepts no liability for loss of data during {span}.
            {party} shall indemnify against claims and damages raised within {span}.
            Damages claimed from {party} are limited to direct loss over {span}.
            {party} excludes all liability for incidental loss for {span}.
            The cap on damages owed by {party} covers {span}.
        """,
        "jurisdiction": """
            This Agreement with {party} is governed by the laws of {land}.
            {party} submits to the exclusive jurisdiction of the courts of {land}.
            Any dispute with {party} shall be resolved by the courts of {land}.
            The governing law for {party} shall be that of {land}.
            {party} agrees that venue lies in the courts of {land}.
            Disputes shall be settled by arbitration seated in {land} binding {party}.
            The courts of {land} have jurisdiction over {party}.
            {party} irrevocably consents to the jurisdiction of {land}.
            This contract is construed under the laws of {land} as to {party}.
            Legal proceedings against {party} shall be brought in {land}.
        """,
    },
)

_TEST = half(
    {
        "side": "the Vendor | the Buyer | the Lessee | the Agency | the Receiving Party",
        "time": "forty-five days | three years | one week | six months | twenty days",
        "place": "Ireland | the State of Delaware | Scotland | Spain | the State of Florida",
    },
    {
        "confidentiality": """
            {side} will hold confidential information in secrecy over {time}.
            No confidential material may be disclosed by {side} for {time}.
            {side} undertakes not to divulge trade secrets for a period of {time}.
            {side} keeps proprietary information private and undisclosed for {time}.
            The confidentiality and secrecy of information binds {side} for {time}.
        """,
        "termination": """
            {side} can end this Agreement early with notice of {time}.
            If a breach is not cured in {time}, {side} has the right of termination.
            This contract may be terminated by {side} on {time} notice.
            {side} may cancel the Agreement before its term ends, giving {time} notice.
            The Agreement terminates automatically after {time} unless {side} renews.
        """,
        "payment": """
            Invoices must be paid by {side} not later than {time} after receipt.
            {side} owes interest on overdue invoices after {time}.
            The fees shall be payable by {side} within {time} of billing.
            {side} will pay the agreed price in {time}.
            All amounts invoiced to {side} fall due in {time}.
        """,
        "liability": """
            {side} is not liable for any consequential or indirect loss during {time}.
            Aggregate liability and damages of {side} shall not exceed fees for {time}.
            {side} will indemnify the other against damages and losses for {time}.
            {side} bears no liability for lost profits over {time}.
            Limitation: {side} is only liable for direct damages within {time}.
        """,
        "jurisdiction": """
            The laws of {place} govern this Agreement and {side}.
            {side} accepts the jurisdiction of courts in {place}.
            All disputes involving {side} go before the courts of {place}.
            Governing law and venue for {side}: {place}.
            {side} may be sued only in a court of {place} under its law.
        """,
    },
)

JOB = make_job(
    name="legal_clause",
    domain="legal",
    specialization="domain",
    tags=("legal", "contract", "clause"),
    description="Names what a contract clause is about.",
    table=ByLabel(_TRAIN, _TEST),
)
