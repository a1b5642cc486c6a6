"""Small jobs used only as decoys: neighbours of the library a router must tell apart from it."""

from .engine import ByLabel, Job, half, make_job

_CUISINE = ByLabel(
    half(
        {"food": "chicken | vegetables | shrimp | pork | mushrooms | eggs"},
        {
            "italian": """
                simmer the {food} in tomato sauce and toss with spaghetti
                bake the {food} under mozzarella and basil
                stir {food} and parmesan into the risotto
            """,
            "mexican": """
                fold the {food} into corn tortillas with salsa
                top the {food} tacos with guacamole and lime
                fry {food} with beans, jalapeno and cilantro for burritos
            """,
            "indian": """
                cook the {food} in curry with turmeric and cumin
                serve {food} masala with naan bread
                marinate the {food} in yogurt and garam masala
            """,
            "japanese": """
                glaze the {food} with soy sauce, mirin and sake
                serve {food} over ramen noodles in miso broth
                roll the {food} in sushi rice and nori
            """,
        },
    ),
    half(
        {"dish": "beef | tofu | zucchini | salmon | lentils"},
        {
            "italian": """
                layer {dish} with lasagna sheets and parmesan
                toss penne pasta with {dish}, tomato and basil
                spread {dish} and mozzarella over the pizza dough
                fry {dish} in olive oil and stir into risotto
            """,
            "mexican": """
                wrap {dish} in tortillas with guacamole
                fill tacos with {dish}, beans and cilantro
                season {dish} with jalapeno and spoon over salsa
            """,
            "indian": """
                simmer {dish} curry with cumin and ginger
                stew {dish} in masala and eat with naan
                fry turmeric and garam masala, add {dish}
            """,
            "japanese": """
                dip {dish} in soy sauce and wasabi
                boil ramen noodles and add {dish} with miso
                wrap {dish} and sushi rice in nori
                cook {dish} teriyaki with mirin and sake
            """,
        },
    ),
)

_SPORTS = ByLabel(
    half(
        {"team": "Rovers | the Hawks | City | the Lions | Athletic | the Tigers"},
        {
            "win": """
                {team} won the match with a late goal
                {team} beat their rivals and took all three points
                a brilliant victory for {team} at the stadium
                {team} triumphed and lead the league
            """,
            "loss": """
                {team} lost the match after a late goal
                {team} were beaten by their rivals and left without points
                a bitter defeat for {team} at the stadium
                {team} went down and slip in the league
            """,
            "draw": """
                {team} drew the match with a late equalizer
                {team} shared the points with their rivals
                a goalless draw for {team} at the stadium
                {team} tied and stay level in the league
            """,
        },
    ),
    half(
        {"club": "United | the Bears | Wanderers | the Eagles | Dynamo"},
        {
            "win": """
                {club} win again, the striker scored twice
                {club} celebrate a big victory over the champions
                {club} beat the visitors three goals to one
                fans cheered as {club} won the final
                {club} took victory in the derby
            """,
            "loss": """
                {club} lose again, the keeper let in four
                {club} suffer a heavy defeat against the champions
                {club} were beaten at home three goals to nil
                fans left early as {club} lost the final
                {club} fell to defeat in the derby
            """,
            "draw": """
                {club} draw again, both teams scored once
                {club} end level with the champions
                {club} tied two all at home
                points shared as {club} drew the semifinal
            """,
        },
    ),
)

_STAR = ByLabel(
    half(
        {"day": "today | this week | this month | tonight | on Monday | this season"},
        {
            "fire": """
                your passion burns bright {day}, Aries, the stars ignite courage
                Leo, a blazing Mars sparks bold energy {day}
                flames of ambition heat up your horoscope {day}, Sagittarius
            """,
            "water": """
                your emotions flow deep {day}, Cancer, under the moon
                Pisces, a tide of dreams and intuition washes over you {day}
                waves of feeling fill your horoscope {day}, Scorpio
            """,
            "earth": """
                stay grounded {day}, Taurus, the stars favor patience
                Virgo, practical work and solid ground bring harvest {day}
                build on rock in your horoscope {day}, Capricorn
            """,
            "air": """
                a fresh breeze of ideas arrives {day}, Gemini
                Libra, the wind carries talk and balance {day}
                your thoughts fly high in your horoscope {day}, Aquarius
            """,
        },
    ),
    half(
        {"time": "tomorrow | this year | this autumn | on Sunday | under the full moon"},
        {
            "fire": """
                Aries, bold passion and burning courage guide you {time}
                a spark ignites for Leo {time}, the stars say
                Sagittarius, your zodiac flame blazes {time}
                hot Mars energy fires you up {time}
            """,
            "water": """
                Cancer, deep emotions flow like a river {time}
                the tide of intuition turns for Pisces {time}
                Scorpio, waves of feelings rise {time}
            """,
            "earth": """
                Taurus, patience and solid ground reward you {time}
                practical Virgo stays grounded {time}, the stars say
                Capricorn, steady as a mountain rock {time}
            """,
            "air": """
                Gemini, new ideas blow in on the breeze {time}
                the wind brings balance to Libra {time}
                Aquarius, let your mind fly free {time}
                light winds and clever talk, the zodiac says {time}
            """,
        },
    ),
)

_GARDEN = ByLabel(
    half(
        {"crop": "tomatoes | roses | lavender | apples | beans | strawberries"},
        {
            "plant": """
                when should I sow the {crop} seeds in the soil
                how deep do I plant {crop} in the garden bed
                how far apart do {crop} seedlings go in the ground
            """,
            "water": """
                how often should I water the {crop}
                the soil of my {crop} is dry, how much watering
                do {crop} need the sprinkler in summer
            """,
            "prune": """
                how do I prune the {crop} branches
                when do I cut back the {crop} stems
                should I trim dead shoots of the {crop} with shears
            """,
            "harvest": """
                when are the {crop} ripe to harvest
                how do I pick the {crop} when mature
                are my {crop} ready to be gathered
            """,
        },
    ),
    half(
        {"plot": "peppers | hydrangea | raspberries | grapes | peas"},
        {
            "plant": """
                what month do I plant {plot}
                can I sow {plot} seeds in spring soil
                where in the garden should {plot} seedlings be planted
                how deep do {plot} bulbs or seeds go into the bed
            """,
            "water": """
                how much water do {plot} need in dry weather
                is daily watering of {plot} too often
                should I water {plot} with a sprinkler or can
            """,
            "prune": """
                where do I cut the branches of {plot}
                is it time to prune {plot} stems
                how do I trim back {plot} with garden shears
                which shoots of {plot} should be pruned
            """,
            "harvest": """
                how can I tell {plot} are ripe
                when do I pick and harvest {plot}
                are {plot} ready for harvesting in autumn
            """,
        },
    ),
)

DECOY_JOBS: dict[str, Job] = {
    job.name: job
    for job in (
        make_job("recipe_cuisine", "food", "domain", ("food", "recipe", "cooking"), "Names the cuisine of a recipe sentence.", _CUISINE),
        make_job("sports_result", "sport", "domain", ("sport", "match", "team"), "Says how a match ended for a team.", _SPORTS),
        make_job("star_sign", "astrology", "domain", ("astrology", "horoscope"), "Names the element of a horoscope text.", _STAR),
        make_job("garden_task", "garden", "domain", ("garden", "plants"), "Names the task a gardening question is about.", _GARDEN),
    )
}
