"""Which hospital department a described symptom belongs to."""

from .engine import ByLabel, half, make_job

_TRAIN = half(
    {
        "who": "I am a patient and | my mother says | my husband complains | the patient reports | for weeks now | since yesterday | doctor,"
        " | at my age of 50, | my daughter tells me | every night",
        "joint": "knee | shoulder | hip | ankle | elbow | wrist | lower back | neck",
        "skin": "arms | face | hands | scalp | chest skin | legs | cheeks | forehead",
        "when": "after walking upstairs | during exercise | in the morning | when resting | at work | after a stressful day | when lying down"
        " | for three days",
    },
    {
        "cardiology": """
            {who} there is chest pain {when}
            {who} the heart is racing {when}
            {who} heart palpitations come {when}
            {who} a tight pressure on the chest {when}
            {who} the heartbeat feels irregular {when}
            {who} blood pressure is very high {when}
            {who} the heart skips beats {when}
            {who} chest tightness and shortness of breath {when}
            {who} pain spreads from the chest to the left arm {when}
            {who} a fast pulse and pounding heart {when}
        """,
        "dermatology": """
            {who} an itchy rash appeared on the {skin}
            {who} red spots and flaky skin on the {skin}
            {who} a mole on the {skin} changed its color
            {who} acne is covering the {skin}
            {who} dry itching skin on the {skin}
            {who} eczema patches on the {skin} are burning
            {who} small blisters are on the skin of the {skin}
            {who} hives and redness spread over the {skin}
            {who} the skin on the {skin} is peeling
            {who} itchy pimples grow on the {skin}
        """,
        "orthopedics": """
            {who} the {joint} hurts and is swollen
            {who} the {joint} was sprained at football
            {who} bone pain in the {joint} after a fall
            {who} the {joint} joint is stiff and aching
            {who} the {joint} cracks and cannot bend
            {who} a fracture of the {joint} is suspected
            {who} the {joint} was twisted while running
            {who} sore {joint} and limping on the leg
            {who} the {joint} ligament seems torn
            {who} arthritis makes the {joint} ache
        """,
        "neurology": """
            {who} a severe headache {when}
            {who} migraine with dizziness {when}
            {who} numbness and tingling in the fingers {when}
            {who} seizures happen {when}
            {who} hands tremble and shake {when}
            {who} memory loss and confusion {when}
            {who} fainting and vertigo {when}
            {who} throbbing head pain {when}
            {who} speech is slurred and the face droops {when}
            {who} balance is lost and the head spins {when}
        """,
        "digestion": """
            {who} stomach cramps {when}
            {who} nausea and vomiting {when}
            {who} heartburn and acid reflux {when}
            {who} diarrhea {when}
            {who} constipation and bloating {when}
            {who} belly pain and gas {when}
            {who} the abdomen is bloated {when}
            {who} indigestion with burping {when}
            {who} bowel pain and blood in the stool {when}
            {who} an upset stomach and no appetite {when}
        """,
        "eyes": """
            {who} vision is blurry {when}
            {who} the eyes are red and watery {when}
            {who} seeing double {when}
            {who} the left eye is itchy and swollen {when}
            {who} the eyelid is sticky and sore {when}
            {who} eyesight gets worse {when}
            {who} floating dots disturb the sight {when}
            {who} bright light hurts the eyes {when}
            {who} dry burning eyes {when}
            {who} cannot see clearly with the right eye {when}
        """,
    },
)

_TEST = half(
    {
        "person": "my father has | the nurse noted | a woman of 63 has | my son suffers from | I keep getting | grandmother describes",
        "limb": "foot | thigh | heel | spine | toe | collarbone",
        "spot": "back | belly skin | thighs | chin | palms | shins",
        "time": "when climbing hills | before breakfast | while sitting | since last week | all afternoon | whenever tired",
    },
    {
        "cardiology": """
            {person} aching in the chest and a racing pulse {time}
            {person} a fluttering heart {time}
            {person} an irregular heart rhythm {time}
            {person} squeezing chest pressure {time}
            {person} heart pain and breathlessness {time}
        """,
        "dermatology": """
            {person} itching and a red rash over the {spot}
            {person} scaly skin patches on the {spot}
            {person} skin irritation with bumps on the {spot}
            {person} a strange dark mole at the {spot}
            {person} cracked, flaking skin around the {spot}
        """,
        "orthopedics": """
            {person} a swollen, painful {limb} after tripping
            {person} a possibly broken bone in the {limb}
            {person} a stiff {limb} that hurts to bend
            {person} a sprain of the {limb} from running
            {person} joint ache near the {limb} and a limp
        """,
        "neurology": """
            {person} terrible headaches and dizzy spells {time}
            {person} tingling, numb hands {time}
            {person} a pounding migraine {time}
            {person} shaking hands and tremors {time}
            {person} confusion and forgetting names {time}
        """,
        "digestion": """
            {person} stomach ache and vomiting {time}
            {person} bloating with cramps in the belly {time}
            {person} acid burning up from the stomach {time}
            {person} loose stools and nausea {time}
            {person} constipated bowels {time}
        """,
        "eyes": """
            {person} blurred eyesight {time}
            {person} a sore, red eye {time}
            {person} double vision {time}
            {person} watering, itchy eyes {time}
            {person} trouble seeing and a swollen eyelid {time}
        """,
    },
)

JOB = make_job(
    name="med_department",
    domain="medical",
    specialization="domain",
    tags=("medical", "triage", "symptom"),
    description="Names the hospital department for a symptom a patient describes.",
    table=ByLabel(_TRAIN, _TEST),
)
