"""Sentences to speak: some written for this project, and a grammar that makes any number more."""

import random
import zlib


def _entries(text: str) -> list[str]:
    return [entry.strip() for entry in text.split("|")]


SPOKEN = """
Good morning, and thank you for coming along.
I measured the garden twice, and both times it was too small.
Would you pass the blue cup, please?
Seven zebras crossed the frozen river before sunrise.
My uncle fixes old clocks in a shop by the harbour.
We could walk, or we could wait for the bus.
The weather should clear up by Thursday afternoon.
She laughed at the joke, then asked to hear it again.
Both boys chose a book about whales and volcanoes.
Put the cheese on the top shelf, beside the jam.
I usually take the early train, but not today.
The judge gave a short speech and sat down.
How far is the nearest village from here?
Our neighbours grow grapes, figs and very large melons.
Nothing beats fresh bread with a little butter.
He whispered the answer, and nobody heard it.
The moon was full, so we did not need a torch.
Please measure the height of the wall before you paint it.
Joyful voices filled the whole house that evening.
What a strange and wonderful machine you have built!
Five ships left the bay, and four of them came back.
The pupils pushed the piano up a bumpy path.
Mum baked a pumpkin pie, and Bob brought plum jam.
Maybe a bigger map would help people find the park.
Vera forgave the five fishermen for their very loud van.
Few of the leaves have fallen from the beech above the roof.
I think that thirty thieves thought the other path was smoother.
This is the third month with neither thunder nor wind.
Tell Ted to take ten tins down to the deck at two.
A tired doctor stood at the door and waited for news.
The king kept a golden clock in the back of the coach.
Could Greg carry the big green kettle to the kitchen?
She should choose the cherry jam; Charles just wants cheese.
A large orange bridge joins the two villages.
Usually we treasure the pleasure of a quiet measure of music.
Sister Susan sells small silver spoons in the summer sun.
The nice lady's scissors were lost in the grass.
No one knew when Nina would learn to sing alone.
Eleven yellow lemons lay along the little lane.
Rory read a rare story about a brave red rabbit.
Are there more stars than stones, or are they only brighter?
My father parked the car far from the calm harbour.
Ask Aunt Martha whether the dance class starts at half past.
Ten men went west to mend the fence again.
Every friend in the tent sent letters to Helen.
Six little chicks sit in a thin tin dish.
We see three green trees near the deep sea.
Tom got a lot of hot coffee from the shop on the corner.
All autumn long, Paul walked and talked and drew.
Look, the good cook took a full book of sugar puddings!
Who knew that two blue shoes could ruin the whole school?
Someone must run up and cut some bread for supper.
Her first bird learned thirty words of German.
They stayed away all day to paint the gate grey.
I might fly by night, if the sky is bright and dry.
The boy enjoys the noise of coins and toys.
Now the brown cow is out of town, down south.
Oh no, the old boat won't float over those cold stones.
Here we are, near the pier, with clear air and a beer.
Where is the pair of chairs that you carried upstairs?
You use a huge queue of computers to view a few cubes.
Quick, quiet squirrels quarrel over a square acorn.
Will you walk with us while we wait for the warm weather?
Yesterday a young lawyer yawned beyond the yard.
Hello Harry, how is your happy house on the hill?
Singing and ringing all morning, the long gong hung on a string.
A baby elephant can drink more water than you would believe.
I have never been to the mountains in winter.
Turn left at the church, and then go straight on.
It took them two years to build the boat.
The film begins at eight, so let us meet at seven.
Do you remember the name of that song?
The library closes early on Fridays.
I would rather stay at home and read.
The children made a castle out of sand and shells.
There is a letter for you on the kitchen table.
He plays the violin better than anyone I know.
You can leave your coat and umbrella in the hall.
The soup smells wonderful; what did you put in it?
After lunch we climbed up to the old tower.
Keep the change, and have a pleasant journey.
She has worked as a nurse for more than twenty years.
The answer was much simpler than we had thought.
A cold wind was blowing from the north.
""".strip().splitlines()

PEOPLE = _entries("""
the baker| my sister| our teacher| the old sailor| a young painter| the doctor| your cousin|
the mayor| her brother| the gardener| a clever engineer| the shy waiter| my grandmother|
the postman| a famous singer| the farmer| our neighbour| the librarian| a tall stranger|
the children| the twins| those students| a cheerful guide| the judge| the chemist| the pilot|
George| Charlotte| Matthew| Zoe| Beth| Joshua| Vivian| Hugh| Fatima| Oliver| Keith| Yasmin| Theo|
Wanda
""")
ACTIONS = _entries("""
bought| painted| found| carried| measured| mended| washed| forgot| sold| borrowed| dropped| admired|
photographed| hid| chose| described| examined| polished| opened| lifted| weighed| wrapped| judged|
kept| brought| drew| copied| watched| packed| moved| shared| fetched| shook| unlocked| treasured|
gave away| looked for| asked about| thought of| laughed at
""")
QUALITIES = _entries("""
blue| heavy| broken| golden| tiny| enormous| wooden| cheap| smooth| strange| yellow| quiet| rusty|
beautiful| green| useful| round| frozen| purple| fresh| old| precious| shiny| soft| thick| empty|
wild| bright| huge| narrow| warm| orange| fancy| plain| brave| familiar| curious| gentle| fragile|
joyful
""")
THINGS = _entries("""
bicycle| teapot| umbrella| violin| blanket| bridge| lantern| suitcase| mirror| basket| clock| map|
boat| jacket| spoon| garden| camera| wheel| vase| bucket| window| letter| hammer| chair| painting|
cheese| puzzle| treasure box| feather| ladder| fish tank| sofa| necklace| shoe| whistle| drawing|
yoghurt pot| pumpkin| thimble| toy giraffe| book| cake| mushroom| fountain| piano| telescope|
vegetable| photograph| orange juice| beach ball
""")
PLACES = _entries("""
in the kitchen| near the river| behind the church| at the market| on the beach| by the fireplace|
under the bridge| beside the lake| in the attic| at the airport| outside the theatre|
along the path| in front of the house| on the roof| in the middle of the forest| at school|
next to the fountain| across the valley| in a small village| over the hill| below the castle|
among the roses
""")
TIMES = _entries("""
yesterday| on Thursday| last month| before breakfast| at noon| every winter| this morning|
after the storm| long ago| at the weekend| in June| just now| last night| in the early evening|
twice a year| on the fourth of July
""")
REASONS = _entries("""
because it was raining| although nobody noticed| while the others were singing|
so that we could leave early| before anyone else arrived| since there was nothing else to do|
as if it were the easiest thing in the world| until the bell rang| when the music stopped|
after a very short nap| without saying a word| for a very good reason| which pleased everyone|
and then went home| but could not explain why| to the surprise of the whole town
""")
OPENERS = _entries("""
Well,| Honestly,| You know,| Oh,| By the way,| Of course,| In fact,| As usual,| Believe me,|
To be fair,| Luckily,| Sadly,| Please listen:| Just imagine:| Guess what:| Yes,| No,
""")
NUMBERS = _entries("""
two| three| four| five| six| seven| eight| nine| eleven| twelve| thirteen| twenty| thirty six|
forty five| a hundred| a thousand
""")

TRAIN_FRAMES = (
    "{person} {action} the {quality} {thing} {place}.",
    "{time}, {person} {action} a {quality} {thing}, {reason}.",
    "{opener} {person} {action} {number} {quality} {thing}s {time}.",
    "Did {person} see the {quality} {thing} {place}?",
    "Why is there a {quality} {thing} {place}, and who {action} it?",
    "I wonder whether {person} {action} the {thing} {time}.",
    "{opener} nobody {action} the {quality} {thing} {reason}.",
    "{number} {thing}s and one {quality} {thing2} stood {place}.",
    "{person} said that the {thing} was {quality}, and {person2} agreed.",
    "If you go {place}, bring me a {quality} {thing} and {number} {thing2}s.",
    "There was a {thing} {place} {time}, {quality} and {quality2}.",
)
TEST_FRAMES = (
    "{person} and {person2} {action} every {thing} {place} {time}.",
    "How {quality} the {thing} looked {time}, {place}!",
    "{opener} a {quality} {thing} is worth {number} {quality2} {thing2}s.",
    "What {person} {action} {place} was only a {quality}, {quality2} {thing}.",
    "Neither {person} nor {person2} {action} the {thing} {reason}.",
)


def sentence_split(sentence: str) -> str:
    """Split of a written sentence by its checksum: one in eight is `test`, the others `train`."""
    return "test" if zlib.crc32(sentence.encode()) % 8 == 0 else "train"


def sentences(split: str, count: int, seed: int) -> list[str]:
    """`count` sentences of a split: its written ones first, then random ones from the grammar.

    The splits share no written sentence and no sentence frame of the grammar. The seed sets the order.
    """
    rng = random.Random(f"{split}-{seed}")
    written = [line for line in SPOKEN if sentence_split(line) == split]
    rng.shuffle(written)
    frames = TEST_FRAMES if split == "test" else TRAIN_FRAMES
    made = [_fill(rng.choice(frames), rng) for _ in range(count - len(written))]
    return (written + made)[:count]


def _fill(frame: str, rng: random.Random) -> str:
    person, person2 = rng.sample(PEOPLE, 2)
    quality, quality2 = rng.sample(QUALITIES, 2)
    thing, thing2 = rng.sample(THINGS, 2)
    text = frame.format(
        person=person, person2=person2, quality=quality, quality2=quality2, thing=thing, thing2=thing2,
        action=rng.choice(ACTIONS), place=rng.choice(PLACES), time=rng.choice(TIMES),
        reason=rng.choice(REASONS), opener=rng.choice(OPENERS), number=rng.choice(NUMBERS),
    )  # fmt: skip
    return text[0].upper() + text[1:]
