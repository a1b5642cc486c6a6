"""Queries that no adapter of the example library serves: small talk and general knowledge."""

SMALL_TALK = tuple(
    line.strip()
    for line in """
what is the capital of france
write me a poem about autumn rain
how do i tie a bow tie
tell me a joke about penguins
who won the world cup in 1998
explain black holes to a child
what time is it in tokyo
translate good morning to spanish
how many planets are there
sing me a song
give me three ideas for a birthday gift
what is the meaning of life
solve 3x plus 5 equals 20
how tall is mount everest
suggest a good novel to read
what should i name my cat
write a haiku about the sea
why is the sky blue
how do vaccines work
what is the best way to learn piano
can you recommend a movie for tonight
who painted the mona lisa
define the word serendipity
how do i boil an egg
what are the rules of chess
tell me about the roman empire
what is photosynthesis
how far is the moon
make up a story about a dragon
what is your favourite colour
how do i meditate
when did the second world war end
who is the president of brazil
what is quantum entanglement
give me a tongue twister
how do birds fly
what does carpe diem mean
how to remove a wine stain from a carpet
which animals hibernate in winter
what is the square root of 144
are you a human or a machine
describe a sunset over the ocean
how do magnets work
what is the tallest building
tell me something interesting about octopuses
how can i sleep better
how do i train my dog to sit
what is the speed of light
play some relaxing jazz facts
hello there how are you today
thank you that was great
i am bored
what day is it tomorrow
who wrote hamlet
compare tea and coffee
how do volcanoes erupt
what languages are spoken in switzerland
explain the offside rule
how old is the universe
what makes a good leader
""".strip().splitlines()
)
