"""Which smart home device a spoken command is for."""

from .engine import ByLabel, half, make_job

_TRAIN = half(
    {
        "room": "living room | kitchen | bedroom | bathroom | hallway | office | nursery | guest room | dining room",
        "wake": "hey house, | please | could you | computer, | ok home, | now | assistant, | quickly",
        "style": "jazz | rock | classical | pop | relaxing | party | country | piano",
        "door": "front door | back door | garage door | garden gate | main entrance | cellar door | side door | patio door",
        "time": "at night | at ten | when I leave | in the evening | right now | before bed | in five minutes | for the party",
    },
    {
        "lights": """
            {wake} turn on the lights in the {room}
            {wake} dim the {room} lamp {time}
            {wake} switch off the {room} lights {time}
            {wake} make the {room} brighter
            {wake} set the {room} bulbs to warm white
            {wake} turn off every lamp {time}
            {wake} it is too dark in the {room}
            {wake} change the {room} light color to blue
            {wake} lower the brightness in the {room}
            {wake} lights on in the {room} {time}
        """,
        "heating": """
            {wake} set the {room} thermostat to 2~ degrees
            {wake} turn up the heat in the {room}
            {wake} it is freezing in the {room}
            {wake} lower the {room} temperature {time}
            {wake} switch on the {room} radiator {time}
            {wake} make the {room} warmer
            {wake} turn the {room} heater off {time}
            {wake} warm up the {room} {time}
            {wake} raise the temperature by ~ degrees {time}
            {wake} the {room} is too cold, start the heating
        """,
        "music": """
            {wake} play some {style} music in the {room}
            {wake} next song in the {room}
            {wake} turn up the volume of the {room} speaker
            {wake} put on my {style} playlist
            {wake} pause the song {time}
            {wake} skip this {style} track
            {wake} play the radio in the {room}
            {wake} stop the {style} music
            {wake} shuffle {style} albums in the {room}
            {wake} I want to hear {style} tunes {time}
        """,
        "blinds": """
            {wake} close the blinds in the {room}
            {wake} open the {room} curtains {time}
            {wake} raise the {room} shutters {time}
            {wake} lower the {room} roller blinds
            {wake} draw the curtains in the {room} {time}
            {wake} roll down the {room} shades {time}
            {wake} pull up the blinds {time}
            {wake} tilt the {room} blinds halfway
            {wake} shut the {room} window shades
            {wake} the sun dazzles, blinds down in the {room}
        """,
        "lock": """
            {wake} lock the {door}
            {wake} unlock the {door} {time}
            {wake} is the {door} locked
            {wake} secure the {door} {time}
            {wake} check if the {door} is locked {time}
            {wake} bolt the {door} {time}
            {wake} lock up the {door} {time}
            {wake} let the visitor in, unlock the {door}
            {wake} keep the {door} locked {time}
            {wake} open the lock of the {door} {time}
        """,
    },
)

_TEST = half(
    {
        "area": "den | attic | playroom | library | basement | laundry room",
        "call": "house, | kindly | home assistant, | can you | listen,",
        "kind": "folk | blues | dance | holiday | guitar",
        "entry": "porch door | balcony door | street entrance | shed door | terrace door",
        "when": "at sunset | at midnight | after dinner | today | in an hour",
    },
    {
        "lights": """
            {call} switch the {area} lights on
            {call} turn off the lamp in the {area} {when}
            {call} dim the lights of the {area}
            {call} bring light to the dark {area}
            {call} set brightness of the {area} lamps to low {when}
        """,
        "heating": """
            {call} turn the {area} heating up {when}
            {call} put the thermostat of the {area} at 1~ degrees
            {call} make the cold {area} warm
            {call} heat the {area} {when}
            {call} reduce the temperature of the {area} heater
        """,
        "music": """
            {call} play {kind} songs in the {area}
            {call} stop the music {when}
            {call} start a {kind} playlist on the {area} speaker
            {call} make this {kind} song louder
            {call} skip to the next {kind} track
        """,
        "blinds": """
            {call} open the blinds of the {area} {when}
            {call} close the curtains in the {area}
            {call} put the blinds up in the {area} {when}
            {call} lower the shades of the {area} {when}
            {call} roll the {area} shutters down
        """,
        "lock": """
            {call} lock the {entry} {when}
            {call} unlock the {entry}
            {call} check that I did lock the {entry}
            {call} make sure the {entry} is locked {when}
            {call} secure the lock of the {entry}
        """,
    },
)

JOB = make_job(
    name="home_command",
    domain="home",
    specialization="tool",
    tags=("home", "assistant", "device"),
    description="Names the smart home device a spoken command is for.",
    table=ByLabel(_TRAIN, _TEST),
)
