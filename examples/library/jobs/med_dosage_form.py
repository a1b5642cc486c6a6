"""Which dosage form a prescription line asks for."""

from .engine import ByLabel, half, make_job

_TRAIN = half(
    {
        "drug": "amoxil | metrozan | ibucalm | salvanol | prednol | zyrtal | hydracort | betasol | glucomin | ventarol",
        "freq": "twice daily | every 8 hours | once a day | at bedtime | each morning | three times a day | every 12 hours | as needed"
        " | for 7 days",
        "num": "1 | 2 | one | two | half",
        "area": "affected area | elbows | rash | dry patches | forearm | wound | knee | itchy skin",
        "dose": "4 units | 8 units | 12 units | 20 units | 0.5 ml | 1 ml | 2 ml | 6 units",
    },
    {
        "tablet": """
            {drug}: take {num} tab by mouth {freq}
            take {num} capsule of {drug} orally {freq}
            swallow {num} pill {drug} with water {freq}
            {drug} {num} cap po {freq} after meals
            chew {num} {drug} tablet {freq}
            {drug}, {num} tablet with food {freq}
            by mouth: {drug} {num} caps {freq}
            dissolve {num} {drug} tablet under the tongue {freq}
            take {drug} {num} tablets orally {freq}, do not crush
            swallow {drug} capsule whole {freq}
        """,
        "cream": """
            apply thin layer of {drug} to {area} {freq}
            {drug}: rub gently on the {area} {freq}
            spread {drug} ointment over the {area} {freq}
            {drug} topical, apply to {area} {freq}
            massage {drug} gel into the {area} {freq}
            use {drug} cream on the {area} {freq}
            cover {area} lightly with {drug} ointment {freq}
            {drug} lotion: smooth onto {area} {freq}
            apply {drug} sparingly to the skin of {area} {freq}
            thin film of {drug} on {area} {freq}, external use
        """,
        "inhaler": """
            inhale {num} puffs of {drug} {freq}
            {drug}: {num} puff by inhalation {freq}
            breathe in {num} {drug} puffs {freq} with spacer
            {drug} aerosol, {num} inhalations {freq}
            shake and inhale {drug} {num} puffs {freq}
            use {drug} puffer {freq} for wheezing
            {num} puffs {drug} {freq}, rinse mouth after
            inhale {drug} powder deeply {freq}
            {drug} {num} puffs into the lungs {freq} for asthma
            one inhalation of {drug} {freq}, hold breath
        """,
        "injection": """
            inject {dose} {drug} under the skin {freq}
            {drug} {dose} subcutaneous {freq}
            give {dose} of {drug} by needle {freq}
            {drug}: {dose} intramuscular {freq}
            inject {drug} {dose} into the thigh {freq}
            {drug} prefilled syringe {dose} {freq}
            {dose} {drug} shot into the abdomen {freq}
            administer {dose} {drug} IV {freq}
            {drug} pen: inject {dose} {freq} before meals
            draw up {dose} {drug} and inject slowly {freq}
        """,
        "drops": """
            instill {num} drops of {drug} in left eye {freq}
            {drug}: {num} gtt in both eyes {freq}
            put {num} {drug} drops into the right ear {freq}
            {drug} ophthalmic, {num} drop each eye {freq}
            {drug} otic {num} drops in affected ear {freq}
            drop {num} of {drug} into the eye {freq}
            {num} drops {drug} to the ear canal {freq}
            instill {drug} into the lower eyelid {freq}
            tilt head and place {num} drops {drug} in ear {freq}
            {drug} eye solution: {num} drops {freq}
        """,
    },
)

_TEST = half(
    {
        "med": "lorafen | cefadrin | dermaline | tropazol | nexamin | pulmovit",
        "often": "every 6 hours | nightly | 4 times per day | daily at noon | every other day",
        "n": "3 | three | 4 | four",
        "place": "shins | hands and feet | burn | scaly spots | irritated skin",
        "amount": "10 units | 15 units | 0.3 ml | 5 ml | 30 units",
    },
    {
        "tablet": """
            {med} - {n} tablets to be swallowed {often}
            patient takes {n} {med} pills orally {often}
            take {med} by mouth, {n} capsules {often}
            oral: {n} tabs {med} {often} with a glass of water
            {n} {med} caps taken before meals {often}
        """,
        "cream": """
            rub a thin layer {med} into {place} {often}
            {med} ointment, apply on {place} {often}
            apply {med} gel topically to {place} {often}
            spread a little {med} cream across {place} {often}
            {med} lotion over the {place} {often}, skin only
        """,
        "inhaler": """
            {med} {n} puffs inhaled {often}
            take {n} inhalations of {med} {often} for asthma
            breathe {med} in through spacer, {n} puffs {often}
            {med} puffer: inhale {often} when wheezing
            inhale {n} deep puffs from {med} aerosol {often}
        """,
        "injection": """
            {med} inject {amount} subcutaneously {often}
            {amount} of {med} by syringe under skin {often}
            intramuscular shot {med} {amount} {often}
            inject {med} pen {amount} in abdomen {often}
            needle injection of {amount} {med} {often}
        """,
        "drops": """
            {n} drops {med} into each eye {often}
            instill {med} {n} drops in both ears {often}
            {med} ear solution, {n} drops {often}
            place {n} drops of {med} in the sore eye {often}
            {med} ophthalmic drops, {n} per eye {often}
        """,
    },
)

JOB = make_job(
    name="med_dosage_form",
    domain="medical",
    specialization="domain",
    tags=("medical", "prescription", "medication"),
    description="Names the dosage form a prescription line is for.",
    table=ByLabel(_TRAIN, _TEST),
)
