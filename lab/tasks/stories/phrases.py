"""The words and sentences of the simulator.

Slots of a sentence stand in braces:

- `A` acts, `B` is with A, `D` is another character; each is the two tokens of a name.
- `S` is A, or a pronoun where that is clear, after an opening like "Soon"; `N` is the same without an opening.
- `he`, `his`, `him` are pronouns of A; `heB`, `himB`, `himD` of the others.
- `trait` and `kind` describe A, `traitB` and `kindB` describe B.
- `t` is the thing of the event, and `adj` its look.
- `p` is A's place and `in` its preposition; `q` is another place and `inq` (`Inq`) its preposition.
- `mood` describes a place, `weather` the days of the story, `how` a manner of speaking or showing, `pace` that of other
  actions; `dream` is a subject of songs and stories; `magic` is the refrain of the story.

Words that can follow "a" begin with a consonant.
"""

KINDS: dict[str, tuple[str, ...]] = {
    "girl": ("she",),
    "boy": ("he",),
    "princess": ("she",),
    "prince": ("he",),
    "wizard": ("he",),
    "fairy": ("she",),
} | dict.fromkeys(
    (
        "rabbit", "fox", "bear", "mouse", "frog", "cat", "dog", "duck", "goat", "pony", "squirrel",
        "turtle", "hedgehog", "beaver", "dragon", "robot", "lamb", "monkey", "penguin", "badger", "wolf",
        "lion", "tiger", "zebra", "mole", "parrot", "seal", "giraffe", "camel", "panda", "pirate", "knight",
        "gnome", "troll", "kitten", "puppy",
    ),
    ("he", "she"),
)  # fmt: skip
"""Kinds of characters, with the pronouns that fit."""
TRAITS: tuple[str, ...] = (
    "little", "young", "brave", "curious", "gentle", "funny", "clever", "friendly", "shy", "merry", "sleepy", "lonely",
    "polite", "cheerful", "bold", "lucky",
)  # fmt: skip
"""Traits of characters."""

PLACES: dict[str, str] = {
    place: preposition
    for preposition, places in {
        "in": "garden forest barn meadow cave tower castle valley village field park windmill bakery library cottage "
        "desert jungle stable palace",
        "by": "river lake pond sea waterfall well bridge market school station gate fountain road harbor church "
        "swamp railway lighthouse",
        "on": "hill beach farm mountain",
    }.items()
    for place in places.split()
}
"""Places, with the preposition that fits."""

TOYS: tuple[str, ...] = (
    "ball", "kite", "drum", "doll", "puppet", "puzzle", "rope", "whistle", "flute", "trumpet", "bell", "lantern",
    "basket", "bucket", "blanket", "hat", "scarf", "coat", "necklace", "ring", "crown", "key", "map", "book", "letter",
    "feather", "shell", "stone", "stick", "cup", "spoon", "pillow", "mirror", "candle", "brush", "box", "bottle",
    "pencil", "net", "hammer", "clock", "ribbon", "button", "coin", "flag", "mask", "pearl", "balloon", "marble",
)  # fmt: skip
FOODS: tuple[str, ...] = (
    "pear", "plum", "peach", "cake", "cookie", "pie", "carrot", "nut", "berry", "sandwich", "pancake", "bun", "melon",
    "banana", "cherry", "lemon",
)  # fmt: skip
"""Things to eat."""

LOOKS: tuple[str, ...] = (
    "red", "blue", "green", "yellow", "white", "black", "brown", "purple", "pink", "golden", "silver", "big", "small",
    "tiny", "shiny", "pretty", "strange", "lovely", "bright", "fine", "striped", "beautiful", "wonderful", "precious",
)  # fmt: skip
"""Looks of toys."""
TASTES: tuple[str, ...] = (
    "big", "small", "tiny", "fresh", "lovely", "fine", "tasty", "delicious", "wonderful", "beautiful", "perfect",
)  # fmt: skip
"""Looks and tastes of food."""
MOODS: tuple[str, ...] = (
    "quiet", "lovely", "still", "peaceful", "calm", "beautiful", "pleasant", "wonderful",
)  # fmt: skip
WEATHERS: tuple[str, ...] = ("sunny", "warm", "cold", "fine", "lovely", "bright", "windy", "mild", "beautiful", "cool")
"""Kinds of weather; a story has one."""
MANNERS: tuple[str, ...] = (
    "happily", "softly", "kindly", "gently", "cheerfully", "proudly", "quietly", "warmly", "merrily", "sweetly",
    "politely", "playfully", "dreamily", "shyly", "gladly",
)  # fmt: skip
PACES: tuple[str, ...] = (
    "happily", "cheerfully", "merrily", "gladly", "quickly", "slowly", "bravely", "quietly", "proudly", "boldly",
)  # fmt: skip
DREAMS: tuple[str, ...] = (
    "king", "queen", "giant", "whale", "ship", "comet", "snake", "rainbow", "snowman", "treasure", "dinosaur", "ghost",
    "clown", "spaceship", "rocket", "pumpkin", "mermaid", "volcano", "peacock", "witch", "monster", "circus", "dolphin",
)  # fmt: skip
"""Subjects of tales, songs, drawings and dreams, which no story has as characters or things."""

OPENINGS: dict[str, tuple[int, int, int | None]] = {
    "": (0, 4, None),
    "One day": (0, 0, 1),
    "One morning": (0, 0, 1),
    "One afternoon": (0, 0, 3),
    "Then": (1, 4, None),
    "Soon": (1, 4, None),
    "After a while": (1, 4, None),
    "A little later": (1, 4, None),
    "Before long": (1, 4, None),
    "Later that day": (2, 3, None),
    "At noon": (1, 1, 2),
    "In the afternoon": (1, 2, 3),
    "In the evening": (1, 3, 4),
    "The next morning": (3, 4, 1),
    "The next day": (3, 4, 2),
    "Meanwhile": (5, 5, None),
}
"""Openings before `S`: the first and the last hour at which one is possible, and the hour after it, if that changes.

Hour 0 is long ago, 1 to 4 are morning, noon, afternoon and evening; "Meanwhile" is used after a change of place only.
"""

EVENTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "begin": (
        1,
        (
            "Once upon a time there was a {trait} {kind} named {A} who lived {in} the {p}.",
            "Once there was a {trait} {kind} called {A}, and {his} home was {in} the {p}.",
            "Long ago a {trait} {kind} lived {in} the {p}. Everyone called {him} {A}.",
            "This is the story of {A}, a {trait} {kind} who lived {in} the {p}.",
            "A long time ago a {trait} {kind} by the name of {A} lived {in} the {p}.",
            "There was once a {trait} {kind} {in} the {p}, and {his} name was {A}.",
            "Far away, {in} the {p}, lived {A}, a {trait} {kind}.",
            "Do you know {A}? {A} was a {trait} {kind} who lived {in} the {p}.",
            "Have you heard of {A}, the {trait} {kind} who lived {in} the {p}?",
            "Everyone near the {p} knew {A}, a {trait} {kind}.",
            "Nobody {in} the {p} was as kind as {A}, a {trait} {kind}.",
            "My mother told me of a {trait} {kind} who lived {in} the {p} and was called {A}.",
        ),
    ),
    "meet": (
        220,
        (
            "{S} met a {traitB} {kindB} called {B} {in} the {p}.",
            "{S} saw a {traitB} {kindB} {in} the {p}. \"I am {B},\" said the {kindB}.",
            "A friend of {A}, a {traitB} {kindB} named {B}, came to the {p} too.",
            "A {traitB} {kindB} came along. \"My name is {B},\" {heB} {how} said to {A}.",
            "\"Who are you?\" {A} asked a {traitB} {kindB} {in} the {p}. \"I am {B}.\"",
            "Just then a {traitB} {kindB} called {B} came to the {p} to see {A}.",
            "{S} made a new friend {in} the {p}, a {traitB} {kindB} whose name was {B}.",
            "\"I am {A}. What is your name?\" {A} asked a {traitB} {kindB}. \"{B},\" said the {kindB}.",
            "A {traitB} {kindB} sat {in} the {p}. {A} said hello, and the {kindB} said, \"I am {B}.\"",
            "{S} heard somebody laugh. It was a {traitB} {kindB} named {B}.",
            "\"May I play with you?\" a {traitB} {kindB} {in} the {p} asked {A}. \"They call me {B}.\"",
            "{B}, a {traitB} {kindB}, walked by and smiled {how} at {A}.",
        ),
    ),
    "wish": (
        8,
        (
            "{N} wanted a {t} more than anything.",
            "{S} wished for a {adj} {t}.",
            "{N} had always dreamed of a {adj} {t}.",
            "\"I wish I had a {adj} {t},\" said {A}.",
            "\"If only I had a {t}!\" {A} thought.",
            "More than anything {A} wanted a {adj} {t}.",
            "There was one thing {A} longed for: a {adj} {t}.",
            "{S} closed {his} eyes and wished for a {t}.",
            "\"Some day I will have a {adj} {t},\" thought {A}.",
        ),
    ),
    "tell wish": (
        9,
        (
            "{S} told {B} of {his} wish for a {adj} {t}.",
            "\"I would so like to have a {t},\" {A} told {B}.",
            "\"What do you wish for?\" asked {B}. \"A {adj} {t},\" said {A}.",
            "\"Do you know where I can find a {t}?\" {A} asked {B}.",
            "{S} said to {B}, \"I wish I had a {t}.\"",
            "\"Can you keep a secret, {B}?\" asked {A}. \"I dream of a {adj} {t}.\"",
            "\"All I want is a {adj} {t},\" {A} told {B}.",
        ),
    ),
    "recall wish": (
        6,
        (
            "\"Do you still dream of a {t}, {B}?\" asked {A}. \"I do,\" said {B}.",
            "\"Have you found a {t}?\" {A} asked {B}. {B} had not.",
            "\"I will help you find a {t}, {B},\" said {A}.",
            "{S} had not forgotten that {B} wished for a {t}.",
            "{S} asked {B}, \"Do you still want a {adj} {t}?\"",
        ),
    ),
    "go": (
        5,
        (
            "{S} went {pace} to the {q}.",
            "{S} walked all the way to the {q}.",
            "{S} left the {p} and ran to the {q}.",
            "{S} took the path from the {p} to the {q}.",
            "{N} wanted to see the {q}, so {he} went there.",
            "\"I will go to the {q},\" said {A}, and off {he} went.",
            "{S} said goodbye to the {p} and set out for the {q}.",
            "\"How far is it to the {q}?\" {A} wondered, and went to find out.",
            "{S} ran {pace} to the {q}.",
        ),
    ),
    "go together": (
        5,
        (
            "{S} and {B} went {pace} to the {q}.",
            "{S} took {B} to the {q}.",
            "\"Let us go to the {q},\" {A} said to {B}, and so they did.",
            "{S} and {B} walked side by side to the {q}.",
            "\"Come with me to the {q},\" said {A}, and {B} came along.",
            "\"Who is first at the {q}?\" called {A}. {B} ran, but {A} was faster.",
            "{S} asked {B} to come to the {q}, and they left the {p}.",
            "\"I want to show you the {q}, {B},\" said {A}, and they went there together.",
        ),
    ),
    "join": (
        7,
        (
            "{S} went to the {q}, where {D} was.",
            "{S} missed {D} and went to the {q} to see {himD}.",
            "{S} left the {p} to be with {D} {inq} the {q}.",
            "\"I am coming, {D}!\" called {A}, and ran to the {q}.",
            "{S} followed {D} to the {q}.",
            "\"I will go and see {D},\" said {A}, and set out for the {q}.",
        ),
    ),
    "surprise": (
        5,
        (
            "{S} went to the {q}. To {his} surprise, {D} was there.",
            "{S} walked to the {q}, and there was {D}!",
            "{S} left the {p} to look for {D}, and found {himD} {inq} the {q}.",
            "\"{D}, here you are!\" cried {A} when {he} came to the {q}.",
        ),
    ),
    "find": (
        14,
        (
            "{S} found a {adj} {t} {in} the {p}.",
            "A {adj} {t} lay {in} the {p}, and {A} took it.",
            "{S} saw a {adj} {t} {in} the {p} and picked it up.",
            "\"Look, a {t}!\" cried {A}, and picked it up.",
            "{S} looked around {in} the {p} and found a {t}.",
            "{S} saw something {adj} {in} the {p}. It was a {t}, and {A} kept it.",
            "Something {adj} lay {in} the {p}: a {t}! {A} picked it up.",
            "{S} nearly fell over a {adj} {t}, and took it along.",
            "\"Nobody seems to need this {t},\" said {A}, and kept it.",
        ),
    ),
    "pick up": (
        12,
        (
            "{S} picked up the {t} that {D} had left {in} the {p}.",
            "There lay the {t} that {D} had left, and {A} took it.",
            "{S} took the {adj} {t} that {D} had put down.",
            "Nobody had taken the {t} that {D} had left, so {A} picked it up.",
        ),
    ),
    "wish comes true": (
        40,
        (
            "{S} could not believe it: there was a {t} {in} the {p}! Now it was {his} own.",
            "And there, {in} the {p}, was the {t} that {A} had wished for. {A} took it and laughed.",
            "\"A {adj} {t}, just what I wanted!\" cried {A}, and picked it up.",
            "{S} found a {adj} {t}, and {his} wish came true.",
            "{S} looked around, and what did {he} see? A {adj} {t}! {A} picked it up at once.",
        ),
    ),
    "wish was left": (
        40,
        (
            "There lay the {t} that {D} had left. \"Just what I wanted!\" cried {A}, and took it.",
            "{S} picked up the {adj} {t} that {D} had left, and so {his} wish came true.",
            "{S} saw the {t} that {D} had left {in} the {p}. Now it belonged to {A}, at last.",
        ),
    ),
    "give": (
        6,
        (
            "{S} {how} gave the {t} to {B}.",
            "{S} gave {B} the {adj} {t}.",
            "\"This {t} is for you, {B},\" said {A}.",
            "\"Would you like my {t}?\" asked {A}. {B} took it and said, \"Thank you.\"",
            "{S} let {B} have the {t}.",
            "{S} had a present for {B}: the {adj} {t}.",
            "\"You may keep my {t},\" {A} said {how} to {B}.",
        ),
    ),
    "grant": (
        30,
        (
            "{S} gave {B} the {t}. {B} had wished for it so long!",
            "\"Would you like this {t}?\" {A} asked. \"It is just what I wanted!\" cried {B}, and took it.",
            "{S} showed {B} the {adj} {t}. \"I have dreamed of it!\" said {B}, and {A} gave it to {himB}.",
            "{S} handed {B} the {adj} {t}, and so the wish of {B} came true.",
        ),
    ),
    "grant told wish": (
        40,
        (
            "\"Here is the {t} you wanted,\" {A} said to {B}. {B} jumped for joy.",
            "{S} knew what {B} wanted, and gave {himB} the {adj} {t}.",
            "\"I have something for you, {B},\" said {A}. It was the {t}!",
            "{S} remembered what {B} had wished for. \"The {t} is yours, {B},\" said {A}.",
            "\"Close your eyes, {B},\" said {A}. When {B} looked again, {heB} held the {adj} {t}.",
        ),
    ),
    "ask": (
        30,
        (
            "\"May I have your {t}, {B}?\" asked {A}. \"Yes,\" said {B}, and gave it to {him}.",
            "{S} asked {B} for the {t}, and {B} gave it to {him}.",
            "\"Please give me the {t},\" {A} begged. {B} smiled and gave it to {him}.",
            "{B} saw how much {A} wanted the {t}. \"It is yours,\" said {B}.",
            "\"I have always wanted a {t},\" {A} told {B}. So {B} gave {A} the {adj} {t}.",
        ),
    ),
    "put down": (
        3,
        (
            "{S} put the {t} down {in} the {p}.",
            "{N} had no more use for the {t} and left it {in} the {p}.",
            "{S} dropped the {adj} {t} {in} the {p}.",
            "{S} forgot the {t} {in} the {p}.",
            "\"I do not need this {t} now,\" said {A}, and put it down.",
        ),
    ),
    "play": (
        6,
        (
            "{S} and {B} played {how} with the {t}.",
            "{S} showed {B} the {adj} {t}.",
            "\"Do you like my {t}?\" asked {A}. \"What a {adj} {t}!\" said {B}.",
            "\"Let us play with the {t},\" {A} said to {B}, and they did.",
            "{B} liked the {adj} {t} that {A} had.",
            "\"Where did you get that {t}?\" {B} asked. {A} only smiled.",
            "{S} {how} let {B} hold the {t} for a moment.",
        ),
    ),
    "use": (
        3,
        (
            "{S} looked at the {adj} {t} and smiled {how}.",
            "{S} held the {t} tight {in} the {p}.",
            "{N} was proud of the {adj} {t}.",
            "{S} carried the {t} {pace} around {in} the {p}.",
            "{N} was glad to have the {adj} {t}.",
            "\"What a {adj} {t} I have,\" thought {A}.",
        ),
    ),
    "eat": (
        5,
        (
            "{N} was hungry and ate the {t}.",
            "{S} ate the {adj} {t}, every bit of it.",
            "\"Yum,\" said {A}, and the {t} was gone.",
            "{S} sat down {in} the {p} and ate the {t}.",
        ),
    ),
    "share": (
        7,
        (
            "{S} shared the {t} with {B}, and soon it was gone.",
            "\"Half of the {t} is for you, {B},\" said {A}, and they ate it.",
            "\"Are you hungry, {B}?\" asked {A}. They shared the {adj} {t}.",
            "{S} and {B} sat down {in} the {p} and ate the {t} together.",
        ),
    ),
    "chat": (
        9,
        (
            "{S} waved {how} at {B}.",
            "\"I am so glad you are here, {B},\" {A} said {how}.",
            "\"What a {weather} day,\" {A} said to {B}.",
            "{S} told {B} a story about a {dream}, and {B} laughed.",
            "{S} and {B} {how} sang a song about a {dream}.",
            "\"Are you my friend, {B}?\" asked {A}. \"Of course I am,\" {B} said {how}.",
            "{S} ran after {B} {in} the {p}, but {B} was too fast.",
            "\"Catch me, {A}!\" called {B}, and they ran {pace} around {in} the {p}.",
            "{S} hugged {B} {in} the {p}.",
            "{S} danced {pace} with {B} {in} the {p}.",
            "\"Do you like it {in} the {p}?\" {A} asked {B}. \"It is so {mood} here!\" said {B}.",
            "{S} and {B} {pace} played hide and seek {in} the {p}.",
            "{S} and {B} talked about a {dream}.",
            "\"Look, that cloud is like a {dream}!\" {A} said to {B}.",
            "\"Have you ever seen a {dream}, {A}?\" asked {B}. \"Only in my dreams,\" said {A}.",
            "{S} asked {B} a riddle. {B} guessed that it was a {dream}.",
            "\"Tell me a story, {A},\" said {B}. So {A} told {himB} about a {dream} {inq} the {q}.",
            "{S} asked {B} about the {q}, and they talked {how} for a long time.",
        ),
    ),
    "where": (
        9,
        (
            "\"Where is {D}?\" asked {A}. \"{Inq} the {q},\" said {B}.",
            "{S} asked {B} where {D} was. \"{D} is {inq} the {q},\" said {B}.",
            "\"Have you seen {D}?\" {A} asked. \"Yes, {inq} the {q},\" said {B}.",
            "\"{D} is {inq} the {q},\" {B} told {A}.",
            "\"I am looking for {D},\" said {A}. \"Go to the {q},\" said {B}.",
        ),
    ),
    "who has it": (
        20,
        (
            "\"Who has a {t}?\" asked {A}. \"{D} has one,\" said {B}.",
            "\"Have you seen a {t}?\" {A} asked {B}. \"Yes, {D} has a {adj} one,\" said {B}.",
            "\"I would love to have a {t},\" said {A}. \"You could ask {D} for one,\" said {B}.",
        ),
    ),
    "news": (
        9,
        (
            "\"{D} has a {adj} {t},\" {B} told {A}.",
            "\"{D} has a {t} now,\" said {B}. {A} was surprised.",
            "\"Guess what {D} has,\" {B} said to {A}. \"A {adj} {t}!\"",
            "{B} told {A} about the {adj} {t} that {D} had.",
        ),
    ),
    "think": (
        4,
        (
            "{S} thought of {D}, who was {inq} the {q}.",
            "{N} wondered what {D} was doing {inq} the {q}.",
            "\"I hope {D} is happy {inq} the {q},\" thought {A}.",
            "{N} missed {D}, who was {inq} the {q}.",
        ),
    ),
    "wonder": (
        5,
        (
            "{S} wondered where {D} was.",
            "\"Where can {D} be?\" thought {A}.",
            "\"I have not seen {D} for a long time,\" thought {A}.",
            "{S} looked for {D}, but {D} was not {in} the {p}.",
        ),
    ),
    "glad": (
        2,
        (
            "{S} danced {pace} {in} the {p}.",
            "{S} smiled {how}, for all was {mood} {in} the {p}.",
            "{S} whistled {how} {in} the {p}.",
            "{S} {pace} drew a {dream}.",
            "{S} sang a song about a {dream}.",
            "{S} {how} hummed a tune about the {q}.",
            "\"It is good to be {in} the {p},\" thought {A}.",
        ),
    ),
    "sad": (
        5,
        (
            "{N} was sad, for {he} had no {t}.",
            "{N} still had no {t}, and cried a little.",
            "{N} could not stop thinking of a {adj} {t}.",
            "{S} looked for a {t} {in} the {p}, but there was none.",
            "\"Will I ever have a {t}?\" {A} sighed.",
            "{S} drew a picture of a {adj} {t}.",
            "{S} searched all over for a {t}, but did not find one.",
        ),
    ),
    "scene": (
        1,
        (
            "It was {mood} {in} the {p}.",
            "It was a {weather} day, and all was {mood} {in} the {p}.",
            "A {dream} was painted on a wall near the {p}.",
            "Birds sang {pace} not far from the {p}.",
            "What a {mood} place the {p} was!",
            "A butterfly came from the {q} and flew away again.",
        ),
    ),
    "rest": (
        2,
        (
            "{S} sat down {in} the {p} and thought of nothing at all.",
            "{S} slept {in} the {p} and dreamed of a {dream}.",
            "{S} thought about a {dream} for a long time.",
            "{N} was tired and lay down {in} the {p} to dream of a {dream}.",
            "{S} {how} listened to the birds {in} the {p}.",
            "{S} drew a picture of the {p}.",
            "{S} imagined a {dream} {inq} the {q}.",
        ),
    ),
    "magic": (
        70,
        (
            "\"{magic}!\" {A} sang {how}.",
            "{S} said the magic words, \"{magic}!\"",
            "A voice {in} the {p} {how} whispered, \"{magic}.\"",
            "The wind seemed to sing {how}, \"{magic}.\"",
            "\"{magic},\" {A} said {how}.",
            "All the birds {in} the {p} sang, \"{magic}!\"",
            "{S} sang a song about a {dream}: \"{magic}!\"",
        ),
    ),
    "end alone": (
        1,
        (
            "In the end {A} went home and slept well.",
            "{A} never forgot any of this.",
            "{A} lived happily ever after.",
            "\"What a day!\" said {A}, and went to bed.",
            "Good night, {A}!",
            "And that was the story of {A}.",
        ),
    ),
    "end together": (
        1,
        (
            "{A} and {B} were friends for ever.",
            "In the end {A} and {B} went home and slept well.",
            "And {A} and {B} lived happily ever after.",
            "\"Good night, {B},\" said {A}. \"Good night, {A}!\"",
            "{A} and {B} never forgot any of this.",
            "\"See you tomorrow, {B}!\" said {A}, and went home.",
            "And that was the story of {A} and {B}.",
        ),
    ),
    "end apart": (
        1,
        (
            "{A} and {D} stayed friends for ever.",
            "{A} went to bed and dreamed of {D}.",
            "And {A} and {D} lived happily ever after.",
            "\"I will see {D} tomorrow,\" said {A}, and went to bed.",
            "{A} never forgot {D}.",
            "And that was the story of {A} and {D}.",
        ),
    ),
    "end wishing": (
        1,
        (
            "\"Tomorrow I will look for a {t} again,\" said {A}, and went to bed.",
            "That night {A} dreamed of a {adj} {t}.",
            "And one day, who knows, {A} will have a {t}.",
        ),
    ),
}  # fmt: skip
"""By event: its weight among those that are possible, and the sentences that tell it."""
