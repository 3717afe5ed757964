"""Write training rows for the customer-service task: the hand-written ones plus rows from a seeded grammar.

    python generate.py --rows 320 --seed 0 --handwritten handwritten.jsonl --out train.jsonl

situations.txt holds the situations, a block for each intent. A sketch starts with "@items flags - message"; a line
">" opens what the reply says first, a line "+" the next step where the intent's usual STEPS do not fit.
Markup: {a|b} one of them, [a] perhaps, <a|b> a where the message has an order number and else b, $name a
value of the row, ^h and ^l words that make a message urgent or not, ~ "I'm sorry". Flags: d b m r c a deadline
of that kind may follow, H L the urgency without such words, T terse, N never an order number, O always one,
P plain: the customer says in ordinary words what is wrong (PLAIN of all rows; the other sketches are indirect).
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

PROBLEMS = "late_delivery damaged_item wrong_item billing_charge payment_failed account_access warranty_claim"
SHORTEST, LONGEST = 14, 26  # words of a reply
PLAIN = 0.6  # share of the rows from plain sketches
FORBIDDEN = (
    r"guarantee|promise|immediately|instantly|right away|today|tomorrow|compensation|free gift|100%|definitely"
    r"|certainly|always|never|!"
)
ITEMS = {  # a star marks a plural
    "elec": "kettle,toaster,stick blender,hand mixer,rice cooker,bread machine,milk frother,fan heater,desk lamp,"
    "floor lamp,waffle iron,coffee grinder,slow cooker,egg boiler,portable speaker,headphones*",
    "brk": "teapot,salad bowl,soup bowls*,cake stand,glass jug,vase,mugs*,serving dish,butter dish,sugar bowl,"
    "wine glasses*,egg cups*",
    "bed": "duvet cover,pillowcases*,fitted sheet,wool blanket,bedspread,bath towels*,tablecloth,curtains*",
    "wear": "cardigan,raincoat,slippers*,ankle boots*,linen trousers*,dressing gown,wool jumper,winter coat",
    "shoe": "slippers*,ankle boots*,sandals*,wellingtons*,trainers*,clogs*",
    "furn": "side table,bar stool,bookshelf,coat stand,shoe bench,bedside table,folding desk",
    "gard": "raised planter,garden hose,watering can,bird feeder,parasol,trellis,compost bin",
    "toy": "wooden train,doll's house,marble run,jigsaw,play kitchen,rocking horse",
    "food": "tea sampler,honey jars*,coffee beans*,jam set,biscuit tin,olive oil set",
}
ITEMS["any"] = ",".join(ITEMS[k] for k in ("elec", "brk", "bed", "furn", "gard", "toy"))
FIRST_NAMES = """Amara Bea Cillian Dilnoza Emeka Farah Goran Hana Ines Jarek Katya Leila Mateo Nadia Oskar Priya
Quentin Rosa Sanjay Tove Umar Vera Wanjiru Xenia Yara Zofia Anton Brigid Carmen Duc Elif Fergus Gita Hamza Ilse
Joao Kemal Lotte Minh Nkechi Orla Paolo Ruth Sven Tamsin Ulrike Viktor Wim Yuki Zainab Aoife Boris Chidi
Delphine Esther Femi Greta Hugo Ivana Jun"""
NAMES = re.split(r"\s", FIRST_NAMES)
VALUES = {
    "day": "Monday,Tuesday,Wednesday",
    "dday": "Thursday,Friday,Saturday,Sunday",
    "mon": "January,February,March,April,May,June,September,October,November",
    "num": "two,three,four",
    "age": "six weeks,two months,ten weeks,four months,five months,half a year,eight months,nine months,ten months",
    "col": "grey,sage green,navy,cream,mustard,terracotta",
    "oddcol": "bright orange,lilac,lime green,hot pink,dark brown",
    "who": "my sister,my mother,my neighbour,my flatmate,my husband,my wife,my daughter,a colleague,my brother",
    "sz": "36,38,40,42",
    "sub": "tea club,coffee subscription,honey box,biscuit club",
}
DEADLINES = {  # kind of deadline: what the customer writes / what the reply calls it
    "d": """\
* {I need $them|$it must be here} by $dday, {that's my {sister|dad|son}'s birthday|the birthday party is
then}./the birthday on $dday
* we {have|are expecting} {six|eight|ten} {people|guests} {on|this} $dday and I {was counting|count} on the
$x./your guests on $dday
* we {move house|move out} {on|this} $dday, {after that nobody is here|and then this address is history}./your
move on $dday
* {the $x $is|$it $is} {a|our} wedding present and the wedding is {on|this} $dday./the wedding on $dday
* {I fly|we leave} {on|this} $dday {and need this settled first|for three weeks}./your trip on $dday""",
    "b": """\
* it's a birthday present for {this $dday|$dday}, {so I need to get this done|so the clock is ticking}./the
birthday on $dday
* the {offer|discount} {ends|runs out} on $dday{.|, so I can't wait long.}/the offer ending on $dday
* I need {it|this} before {we travel|our trip} on $dday./your trip on $dday""",
    "m": """\
* {my rent|the rent} {goes out|is due} on $dday and I need that money {in the account|back}./your rent on $dday
* {we go|I go} on holiday {on|this} $dday and that {was|is} our spending money./your holiday on $dday
* payday isn't till next week and {my account is empty|there's nothing left for food} until $dday./your account
so short until $dday""",
    "c": """\
* {I fly|we leave} {on|this} $dday, so it {must|has to} be stopped before that./your trip on $dday
* {we move out|the keys go back} {on|this} $dday, {nobody can take it in then|so it must not come after}./your
move on $dday""",
    "r": """\
* {I fly|we travel} on $dday {for a month|for six weeks}, so it has to be {gone|sorted} before./your trip on
$dday
* the {school play|interview|wedding} is this $dday{, so quickly please.| and I have nothing else.}/your date on
$dday
* we move on $dday, {the flat must be empty|so before that please}./your move on $dday""",
}
CALM = """{no rush|no hurry} {at all|whatsoever|from my side}.|whenever {you have a minute|someone has time} {is
fine|will do}.|not urgent{, just wondering| in the least}.|{next week is fine|there's plenty of time}.|take your
time, {nothing hangs on it|it really can wait}.""".replace("\n", " ")
REPEAT = """this is {the second|the third|already the third} {time I write|message} about {it|this}.|{my last|my
first} two mails {went unanswered|got no reply}.|I {wrote|rang|complained} about {exactly this|the same thing}
{last week|on Monday} and {nothing has happened|here we are again}.""".replace("\n", " ")
THREAT = """{if I don't hear from you|without an answer} by {Friday|the weekend} {I'll have my
bank claw the money back|I will dispute the payment with my bank|my lawyer writes the next
letter|I am posting the whole story online}.|{next stop|my next call} is {the consumer office|my
lawyer|my bank's dispute desk}.""".replace("\n", " ")
ANGRY = """{honestly|frankly}, {this is poor|I expected better}.|not {impressed|good enough}.|what a
{circus|farce|mess}.|I am {rather|quite} {fed up|annoyed}.|{well done|bravo}, I suppose.|{really|properly}
disappointing{.| for a shop I like.}"""
ANGRY = ANGRY.replace("\n", " ")
OPENERS = """hi,|hello,|good morning,|good evening,|good afternoon,|hey,|hiya,|dear team,|hello
there,|hi Lark & Kettle,|dear sir or madam,|hi team,|hello, I need some help please.|I have a
question.|quick one:|sorry to bother you.|I'm {writing|typing} this {on the bus|on my phone|on my
lunch break}.|I've been a customer {for years|since you opened}.|lovely shop, by the way.|excuse
my English, {I'm still learning|it is not my first language}.|please bear with me, I don't do this
often.|{hope|I hope} {you're well|you had a good weekend}.""".replace("\n", " ")
CLOSERS = (
    "thanks|thank you|many thanks|cheers|kind regards|best wishes|ta|thanks in advance|please advise"
    "|hope you can help|looking forward to your answer|please help|all the best|yours sincerely|greetings|thx"
).split("|")
RIDERS = """\
* product_question:{oh, and|while I'm here:} {is the blue oven glove coming back|do you still have the oak
trays|will there be a winter sale}{?|, by any chance?}
* order_status:{my other parcel, the tea towels, is|the tea towels from my other order are} {on the
way|travelling} I think, {that's fine|never mind those}.
* damaged_item:{a spoon in the last parcel was a bit scratched|the box had a dent}, but {I don't care about
that|that's no drama}.
* late_delivery:{by the way|incidentally}, the last parcel was {a day|two days} late, {not that it mattered|I
lived}.
* account_access:{also|side note}: your site {logs me out|forgets me} all the time, {but that's for another
day|slightly annoying}.
* billing_charge:(the {invoice|bill} spells my street wrong too, {ignore that|I don't mind}.)
* return_exchange:{I may send the napkins from another order back one day|the apron is too big, but I'll keep
it}, that's separate.
* payment_failed:{paying took me two tries, but it worked|the card page was slow, but it went through in the
end}.
* refund_request:{the refund for the napkins arrived, thanks for that|and thanks for last month's refund, that
was quick}."""
PARCEL = (
    "(tracking $track)|the carrier's code is $track.|I paid $pc {for it|in all}.|bought on the {2nd|14th}, for $pc."
)
LABEL = (
    "the item number {is|says} $art{.|, if that helps.}|I {paid|spent} $pc {for it|in all}.|it says item $art below."
)
DISTRACT = {
    "order_status": PARCEL,
    "late_delivery": PARCEL,
    "damaged_item": LABEL,
    "wrong_item": LABEL,
    "warranty_claim": LABEL,
    "return_exchange": LABEL,
    "cancel_order": LABEL,
}
FACTS = ["x", "day", "age", "pc", "price", "half", "ship", "sz", "sz2", "col", "oddcol", "other", "sub"]
HASTE = r"wait|hurry|soon|nearly|at once|minute|need that|ever\b|three weeks|fed up"
ASKS = {
    "order_status": "{a line|a short word} {is enough|would help me plan}.|please {have a look|tell me where it is}.",
    "late_delivery": """please {find out|ask the driver} {where it got stuck|what went wrong}.|I {want|would
like} {my parcel|to know where it is}, {not another excuse|that's all}.|could somebody {go and look|ring the
carrier}?""",
    "damaged_item": """{a new one|another one, whole this time}, please.|{how do we fix this|what do you need
from me}?|I'd {rather have the money|take a refund} {this time|if that's quicker}.|I {took|have}
{photos|pictures} {of it all|if you want them}.""",
    "wrong_item": """{what happens with this one|who pays the way back}?|{please send what I
ordered|I'd like the right thing}.|I {can|will} {send a picture|keep it in the box} {until you
answer|if you like}.""",
    "refund_request": """{please check|could you check} {your books|with whoever pays}.|{I'd like it back|please
pay it out} {on my card|where it came from}.|{a date would be nice|when can I expect it}?""",
    "return_exchange": """{a label would be kind|please send me a label}.|{what are the steps|what do I do
first}?|{tell me|let me know} {how it works|where it must go}.""",
    "cancel_order": """{please confirm|a short yes is enough|do let me know} {that it's stopped|if it
worked}.|{can you still|is there time to} {catch it|do that}?|{I'd like my money back then|no goods, no bill, I
hope}.""",
    "billing_charge": """{please put it right|please look into this}.|{who can explain|can somebody explain}
{that|the sum}?|I {have kept|can send} {the statement|a screenshot}.""",
    "payment_failed": """{what am I doing wrong|how do I get past this}?|{is it my card or your site|is there a
problem on your side}?|{I only want to pay|I do want to buy it}.""",
    "account_access": """{please let me in|please open it for me}.|{what now|what do I have to send you}?|{is
there a person who can|can someone} {unlock it|look at it}?""",
    "product_question": "{a short answer will do|yes or no is enough}.|{do you happen to know|can somebody measure}?",
    "warranty_claim": """{is that covered|is there cover for that}?|{can it be repaired|do I send
it in}?|I {have|kept} {the receipt|the papers} {somewhere|in a folder}.|{that is too soon|it
should last longer}.""",
}
DETAILS = """my {mother|dad|sister} {chose it with me|laughs at me already|says hello}.|we're
{five|four} in this flat and {the hall is tiny|nobody talks of anything else}.|it has been {a long
week|one of those days}.|I {work nights|teach all day}, {so mail suits me best|so please don't
ring}.|{the dog|the cat} {is no help|finds it all very funny}.|I had been looking forward to
this.|we've {bought|had} {plenty from you|half our kitchen from you} {and it's been fine|over the
years}.|{my husband|my wife} says I should {write it off|be firmer}, {but I like to
be fair|so here I am}.|{outside it's raining|I've just made coffee}, {so I have time to write|so
here goes}.|(I'm {71|68|80} and {not quick at this|my grandson types for me}.)""".replace("\n", " ")
ORDERS = """my order is $id.|order no. $id.|the {order number|number} is $id.|{order|ref}: $id.|it's
{order|number} $id.|that's $id {on my slip|in my mail|on the invoice}.|{number|order} $id, {if I read it
right|as far as I can see}.|{you'll find it|look} under $id.|$id is {what the mail says|the number I have|the
order}.|(order $id)|(#$id)|purchase $id.|{in case you need it|for your files}: $id.""".replace("\n", " ")
NO_ORDER = """I {don't have|can't find} the {order number|number} {right now|any more}.|{the number is|my papers
are} {at home|in the bin}, {sorry|I'm afraid}.|no idea {what|where} the order number is.|{do you need|should I
send} the number?"""
NO_ORDER = NO_ORDER.replace("\n", " ")
SLANG = {
    "you": "u", "are": "r", "please": "pls", "because": "bc", "your": "ur", "thanks": "thx", "about": "abt",
    "to": "2", "for": "4", "something": "smth", "with": "w", "people": "ppl", "tomorrow": "tmrw", "and": "n",
    "really": "rly", "don't": "dont", "I'm": "im", "it's": "its", "can't": "cant", "I've": "ive",
    "doesn't": "doesnt", "won't": "wont",
}  # fmt: skip
STEPS = {
    "order_status": """\
* <We are checking $LK and will {write to you|let you know}.|Please send us your order number, and we will
{check|look it up}.>
* <We will ask the {carrier|warehouse} about $LK and {write to you|let you know}.|Could you send us your order
number, so that we can {check|look it up}?>
* {A|Your} tracking link {is e-mailed|comes by e-mail} when <$LK|your parcel> leaves {the|our} warehouse.""",
    "late_delivery": """\
* <We will {trace $LK|open a trace for $LK} and write within two working days.|Please send us your order number,
and we will open a trace.>
* <We are {tracing $LK|asking the carrier about $LK} and will write within two working days.|Could you send us
your order number so that we can trace it?>
* <{The carrier will trace|A trace is open for} $LK, and you {will hear|hear} from us within two working
days.|Please reply with your order number so the carrier can trace it.>""",
    "damaged_item": """\
* Please send {us |}a photo<| and your order number>, and {choose|tell us if you want} a replacement or refund<
for $LK|>.
* <You can choose {a replacement or a refund|between a refund and a replacement} for $LK.|Please send us your
order number and choose a replacement or a refund.>
* <For $LK, we|Once you send us your order number, we> {will|can} {replace or refund it|send a replacement or a
refund}{|, as you prefer}.""",
    "wrong_item": """\
* Please {send us a photo<| and your order number>|send a photo<| with your order number>}, and we will replace
or refund {it|that}< on $LK|>.
* <We will e-mail a free return label for $LK.|Please send us your order number, and we will e-mail a free
return label.>
* <Would you like|Please send us your order number and choose> the {right|correct} {item|goods} or a refund< for
$LK?|.>""",
    "refund_request": """\
* <We {are checking|will check} $LK with the refunds team and write to you.|Please send us your order number,
and the refunds team will check.>
* <The refunds team will {look at|check} $LK and write to you{| with what they find}.|Could you send us your
order number for the refunds team?>""",
    "return_exchange": """\
* <We will e-mail {a|the} {return |}label for $LK{| if unused and within 30 days}.|Please send us your order
number, and we will e-mail a {return |}label.>
* <A {return |}label for $LK {will come|comes} by e-mail, {valid|usable} within 30 days of delivery.|Please send
your order number, and a label follows within 30 days of delivery.>""",
    "cancel_order": """\
* <We will cancel $LK {if|as long as} {the parcel|it} has not left the warehouse.|Please send us your order
number, and we will try to stop it.>
* <We are asking the warehouse to stop $LK {before it leaves|and will write to you}.|Please send us your order
number so the warehouse can stop it.>
* <We will stop $LK if it is still here; otherwise please refuse the delivery.|Could you send us your order
number so that we can cancel it?>""",
    "billing_charge": """\
* <The accounts team will check $LK and write within two working days.|Please send us your order number, and
accounts will write within two working days.>
* <We have passed $LK to {accounts|the accounts team}, who will write within two working days.|Could you send us
your order number for the accounts team?>""",
    "payment_failed": """\
* {Nothing is taken for a declined payment, so please|Please} try another {card or browser|browser or card}<,
and mention $LK|>.
* {Could you|Please} try another {card|browser} {first|once more}{; nothing|, as nothing} is taken for a
declined payment.
* A {different|new} card or {another |}browser may work<, and we will check $LK|, and nothing is taken for a
declined payment>.""",
    "account_access": """\
* Please {confirm|send us|tell us} {the account e-mail|your account e-mail}, and we will send a reset link valid
for one hour.
* Once you confirm the account e-mail, we will {unlock it|check it} and send a {new|reset} link.
* Please {confirm|tell us} the e-mail on the account, and we will {unlock it|help you back in} after a check.""",
    "product_question": """\
* {The product team|Our product team} will {check|look it up} and reply within one working day.
* We {have passed|are passing} {your question|this} to the product team, who reply within one working day.
* The product team will {have a look|check that} and {write to you|answer} within one working day.""",
    "warranty_claim": """\
* <Please send a photo {or short description |}for $LK, and we will check the warranty.|Please send your order
number and a photo for the warranty check.>
* <Could you send {a photo|a short description} for $LK, so that we can check the warranty?|Please send us your
order number and a short description of the fault.>
* The warranty is $warr, so please send <a photo for $LK|your order number and a photo>.""",
}


@dataclass(frozen=True)
class Sketch:
    """One situation: what it may be about, its message and what the reply opens and goes on with."""

    intent: str
    items: str
    flags: frozenset[str]
    body: str
    opening: str
    steps: tuple[str, ...]


Row = dict[str, str | None]


def entries(text: str) -> list[str]:
    """The entries of a wrapped list: each begins with "* "."""
    return [" ".join(part.split()) for part in re.split(r"^\* ", text, flags=re.MULTILINE) if part.strip()]


def read_sketches(text: str) -> list[Sketch]:
    """Parse the text of situations.txt."""
    found = []
    for block in re.split(r"^== ", text, flags=re.MULTILINE)[1:]:
        intent, _, rest = block.partition("\n")
        for part in re.split(r"^@", rest, flags=re.MULTILINE)[1:]:
            head, _, body = part.partition(" - ")
            items, *flags = head.split()
            pieces = [" ".join(p.split()) for p in re.split(r"^(?=[>+] )", body, flags=re.MULTILINE)]
            own = tuple(p[2:] for p in pieces[2:])
            steps = own or tuple(entries(STEPS[intent]))
            found.append(Sketch(intent, items, frozenset(flags), pieces[0], pieces[1][2:], steps))
    return found


def choose(text: str, rng: random.Random, ordered: bool) -> str:
    """Resolve the brackets of the markup, the innermost first."""
    text = "{" + text + "}"
    while found := re.search(r"\{([^{}\[\]<>]*)\}|\[([^{}\[\]<>]*)\]|<([^{}\[\]<>]*)>", text):
        either, maybe, by_order = found.groups()
        if either is not None:
            new = rng.choice(either.split("|"))
        elif maybe is not None:
            new = maybe if rng.random() < 0.5 else ""
        else:
            new = (by_order + "|").split("|")[0 if ordered else 1]
        text = text[: found.start()] + new + text[found.end() :]
    return text


def fill(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\$([A-Za-z]+\d?)", lambda m: values[m[1]], text)


def tidy(text: str) -> str:
    """Close gaps, drop doubled marks and begin sentences with a capital."""
    text = re.sub(r"\s+", " ", text.replace("^h", "").replace("^l", "")).strip()
    text = re.sub(r" +([,.;:?!)])", r"\1", text)
    text = re.sub(r"([?!:])[.,]|[,;]([.?!])", r"\1\2", re.sub(r"\.{2,}|,\.", ".", text))
    text = re.sub(r"(^|[.?!] [(\"]?)([a-z])", lambda m: m[1] + m[2].upper(), text)
    return re.sub(r"\bi\b(?=[ '])", "I", text)


def pick_values(items: str, rng: random.Random) -> dict[str, str]:
    """Draw the facts of a row; those that go with the item agree with it in number."""
    names = items[1:] if items.startswith("=") else ",".join(ITEMS[key] for key in items.split("+"))
    name = rng.choice(names.split(",")).replace("_", " ")
    plural, item = name.endswith("*"), name.rstrip("*")
    electric = name in ITEMS["elec"].split(",") or name == "heated blanket"
    value = {key: rng.choice(text.split(",")) for key, text in VALUES.items()}
    for key, first in (("col2", "col"), ("sz2", "sz")):
        value[key] = rng.choice([v for v in VALUES[first].split(",") if v != value[first]])
    price = rng.randint(9, 70) * 2
    cents = rng.choice(["90", "95", "50", "00", "49"])
    value |= {
        "x": item,
        "x0": {"shoe": "pair"}.get(next((k for k in ITEMS if name in ITEMS[k].split(",")), ""), "set"),
        "ax": item if plural else ("an " if item[0] in "aeiou" else "a ") + item,
        "it": "they" if plural else "it",
        "them": "them" if plural else "it",
        "is": "are" if plural else "is",
        "isnt": "aren't" if plural else "isn't",
        "was": "were" if plural else "was",
        "has": "have" if plural else "has",
        "do": "do" if plural else "does",
        "s": "" if plural else "s",
        "es": "" if plural else "es",
        "price": str(price),
        "half": str(price // 2),
        "pc": f"{price}{rng.choice('.,')}{cents}" if rng.random() < 0.6 else str(price),
        "ship": rng.choice(["3.90", "4,95", "6", "7.50"]),
        "track": f"00{rng.randint(100, 999)} {rng.randint(1000000, 9999999)}",
        "art": f"{rng.choice('ABKTW')}{rng.choice('EFRS')}-{rng.randint(100, 999)}",
        "other": rng.choice(NAMES),
        "warr": "two years for electrical goods" if electric else "one year for goods like this",
    }
    if not plural:
        value["x0"] = item
    return value


def write_order(digits: str, rng: random.Random) -> str:
    """An order number the ways people write it."""
    ways = [
        "LK-$",
        "LK-$",
        "$",
        "$",
        "$",
        "LK $",
        "LK$",
        "lk $",
        "lk-$",
        "lk$",
        "#$",
        "#LK-$",
        "Lk $",
    ]
    spaced = rng.choice([f"{digits[:2]} {digits[2:]}", " ".join(digits), f"{digits[:3]}-{digits[3:]}"])
    return rng.choice(ways).replace("$", spaced if rng.random() < 0.1 else digits)


def add_order(text: str, number: str, terse: bool, values: dict[str, str], rng: random.Random) -> str:
    """Put the order number somewhere into the message."""
    item = "the " + values["x"]
    way = rng.choice("pppttssiia" if terse else "ppiiiaaammtssss")
    if way == "i" and item in text:
        own = rng.choice([f"{item} ({number})", f"{item} from order {number}", f"{item}, order {number},"])
        return text.replace(item, own, 1)
    if way == "p":
        return rng.choice([f"{number}: ", f"re {number} - ", f"order {number}. ", f"about {number}: "]) + text
    if way == "t":
        return text.rstrip(".?!") + rng.choice([f", {number}", f", order {number}", f" ({number})"]) + "."
    if way == "m" and ". " in text:
        head, _, rest = text.partition(". ")
        return f"{head}. {fill(choose(ORDERS, rng, True), {'id': number})} {rest}"
    return f"{text} {fill(choose(ORDERS, rng, True), {'id': number})}"


def misspell(text: str, rng: random.Random, count: int) -> str:
    """Drop, swap or double a letter in some words."""
    words = text.split(" ")
    for _ in range(count):
        i = rng.randrange(len(words))
        word = words[i]
        if len(word) < 5 or not word.isascii() or not word.isalpha():
            continue
        j = rng.randrange(1, len(word) - 2)
        middle = rng.choice([word[j + 1] + word[j], word[j + 1], word[j] * 2 + word[j + 1]])
        words[i] = word[:j] + middle + word[j + 2 :]
    return " ".join(words)


def roughen(text: str, rng: random.Random) -> str:
    """Write as carelessly as some people do; digits stay as they are."""
    way = rng.random()
    if way < 0.5:
        return text
    if way < 0.68:
        return misspell(text, rng, rng.randint(1, 3))
    if way < 0.72 and len(text) < 160:
        return text.upper()
    if way > 0.9:
        text = " ".join(SLANG.get(w, w) if rng.random() < 0.7 else w for w in text.split(" "))
    text = text.lower()
    if rng.random() < 0.6:
        text = text.replace("'", "")
    if rng.random() < 0.5:
        text = re.sub(r"(?<!\d)[,.](?!\d)", "", text)
    return misspell(text, rng, rng.randint(0, 2))


def join_up(text: str, rng: random.Random) -> str:
    """Run some neighbouring sentences together."""
    rate = rng.choice([0, 0.2, 0.5])
    marks = [" - ", ", ", ", ", "; ", "... "]
    return re.sub(r"(?<=[a-z])\. (?=[a-z]|I\b)", lambda m: rng.choice(marks) if rng.random() < rate else m[0], text)


def make_row(sketch: Sketch, digits: str, rng: random.Random) -> Row | None:
    """One row, which may have `faults`; None if the reply would tell a fact that the message does not."""
    flags, intent, plainly = sketch.flags, sketch.intent, "P" in sketch.flags
    likely = {"account_access": 0.4, "payment_failed": 0.35, "product_question": 0.4}.get(intent, 0.8)
    ordered = "N" not in flags and ("O" in flags or rng.random() < likely)
    values = pick_values(sketch.items, rng) | {"LK": f"LK-{digits}"}
    value = rng.random
    terse = "T" in flags or value() < (0.35 if plainly else 0.1)

    def say(text: str) -> str:
        return fill(choose(text, rng, ordered), values)

    body = say(sketch.body).strip()
    sorry = sketch.opening.startswith("~")
    calm = "^l" in body or "L" in flags
    parts, note = [body], ""
    long, grave = 0.35 if value() < 0.06 else 0.0, "H" in flags
    kinds = [flag for flag in flags if flag in DEADLINES]
    urgent = "^h" in body or "H" in flags
    if not calm and not terse:
        if kinds and value() < 0.28:
            message, _, goal = rng.choice(entries(DEADLINES[kinds[0]])).partition("/")
            parts.append(say(message))
            note = f", {'with' if sorry else 'and we have noted'} {say(goal)}"
            urgent = True
        elif sorry and value() < 0.16:
            parts.append(say(REPEAT))
            note, urgent = rng.choice([", and that you had to write again", ""]), True
        elif sorry and value() < 0.1:
            parts.append(say(THREAT))
            urgent = True
        elif (
            not urgent
            and intent != "cancel_order"
            and not re.search(HASTE, body)
            and value() < (0.16 if sorry else 0.22)
        ):
            parts.append(say(CALM))
            calm = True
        elif intent in PROBLEMS and value() < 0.2:
            parts.append(say(ANGRY))
    if not terse and not grave and value() < 0.05 + long:
        riders = [e.partition(":") for e in entries(RIDERS)]
        parts.append(say(rng.choice([text for other, _, text in riders if other != intent])))
    if not terse and intent in DISTRACT and value() < 0.1 + long:
        parts.insert(1, say(DISTRACT[intent]))
    if not terse and "?" not in body and value() < 0.2 + long:
        parts.append(say(ASKS[intent]))
    if not terse and not grave and value() < 0.05 + long:
        parts.insert(rng.randint(0, 1), say(DETAILS))
    if not ordered and value() < 0.12 and not terse and "N" not in flags:
        parts.append(say(NO_ORDER))
    text = join_up(" ".join(p if p[-1] in ".?!)" else p + "." for p in parts), rng)
    plain, number = text, write_order(digits, rng)
    signed_number = ordered and value() < 0.1
    if ordered and not signed_number:
        text = add_order(text, number, terse, values, rng)
    name = rng.choice(NAMES) if value() < (0.3 if terse else 0.55) else ""
    if value() < (0.1 if terse else 0.35):
        hello = say(OPENERS)
        if name and value() < 0.12:
            hello, text = (
                f"{rng.choice(['hi', 'hello'])}, {rng.choice(['this is', 'it is'])} {name}.",
                text + "~",
            )
        text = f"{hello} {text}"
    introduced, text = text.endswith("~"), text.rstrip("~")
    text = roughen(tidy(text), rng)
    if terse and value() < 0.5:
        text = text.rstrip(".")
    closing = rng.choice(CLOSERS) if value() < (0.15 if terse else 0.35) else ""
    sign = name if not introduced else ""
    if signed_number:
        sign = f"{sign}, {number}" if sign else number
    end = rng.choice([", ", ",\n", " "]).join(filter(None, [closing, sign])) if closing else sign
    if text.islower():
        end = end.lower()
    elif closing:
        end = end[0].upper() + end[1:]
    join = "\n" if value() < 0.2 else " " if text[-1:] in ".?!)" else rng.choice([", ", " - ", ". "])
    message = text + (join + end if end else "")
    sorry_words = "{I'm sorry|I'm sorry|I'm sorry|sorry|I'm sorry that}"
    lead = choose(sketch.opening.replace("~", sorry_words), rng, ordered)
    lead, step = f"Hi {name or 'there'}, {lead}", choose(rng.choice(sketch.steps), rng, ordered)
    if len(f"{lead}{note} {step}".split()) > LONGEST:
        note = ""
    answer = f"{lead}{note}. {step}"
    if any(values[fact] not in plain for fact in re.findall(r"\$([a-z]+\d?)", answer) if fact in FACTS):
        return None
    reply = tidy(fill(answer, values))
    urgency = "high" if urgent else "low" if calm else "normal"
    return {
        "message": message,
        "intent": intent,
        "order_id": f"LK-{digits}" if ordered else None,
        "urgency": urgency,
        "reply": reply,
    }


def faults(row: Row) -> list[str]:
    """What is wrong with a row, by the rules of the data set."""
    message, order, reply = row["message"] or "", row["order_id"], row["reply"] or ""
    found = []
    if list(row) != ["message", "intent", "order_id", "urgency", "reply"]:
        found.append("keys")
    if row["intent"] not in STEPS:
        found.append("intent")
    if row["urgency"] not in ("low", "normal", "high"):
        found.append("urgency")
    if order and not (re.fullmatch(r"LK-\d{5}", order) and order[3:] in re.sub(r"[\W_]", "", message)):
        found.append("order number")
    if not 4 <= len(message.split()) <= 60:
        found.append("message length")
    if not SHORTEST <= len(reply.split()) <= LONGEST:
        found.append("reply length")
    if re.search(rf"\b(?:{FORBIDDEN})\b|!", reply, re.IGNORECASE):
        found.append("forbidden word")
    if len(re.findall(r"[.?](?=\s|$)", reply)) != 2:
        found.append("reply sentences")
    if not re.match(r"Hi [^\W\d_]+, ", reply):
        found.append("greeting")
    if row["intent"] in PROBLEMS.split() and "sorry" not in reply:
        found.append("no apology")
    if re.search(r"[{}\[\]<>|$^~]", message + reply):
        found.append("markup")
    return found


def shingles(text: str) -> set[str]:
    clean = re.sub(r"\d+( \d+)*", "0", re.sub(r"[\W_]+", " ", text.casefold())).strip()
    return {clean[i : i + 5] for i in range(max(1, len(clean) - 4))}


def generate(count: int, seed: int, handwritten: list[Row], closest: float = 0.5) -> list[Row]:
    """`count` rows, as many of each intent as of the next, none much like another or a hand-written one."""
    rng, sketches = (
        random.Random(seed),
        read_sketches(Path(__file__).with_name("situations.txt").read_text(encoding="utf-8")),
    )
    used = {str(row["order_id"])[3:] for row in handwritten}
    seen = [shingles(str(row["message"])) for row in handwritten]
    rows: list[Row] = []
    intents, queues = list(STEPS), dict[tuple[str, bool], list[Sketch]]()
    misses = 0
    while len(rows) < count:
        intent = intents[len(rows) % len(intents)]
        plain = rng.random() < PLAIN
        queue = queues.setdefault((intent, plain), [])
        if not queue:
            own = [s for s in sketches if s.intent == intent and ("P" in s.flags) == plain]
            queue += own + [s for s in own if "T" in s.flags]
            rng.shuffle(queue)
        sketch = queue.pop()
        for _ in range(40):
            digits = f"{rng.randint(0, 99999):05d}"
            row = make_row(sketch, digits, rng)
            if row is None or digits in used or faults(row):
                continue
            marks = shingles(str(row["message"]))
            if all(len(marks & old) <= closest * len(marks | old) for old in seen):
                rows.append(row)
                seen.append(marks)
                used.add(digits)
                misses = 0
                break
        else:
            misses += 1
            if misses > 100:
                raise SystemExit(f"The grammar has no new rows after {len(rows)}: ask for fewer --rows.")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the customer-service training rows.")
    parser.add_argument("--rows", type=int, default=320, help="rows to generate, besides the hand-written ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--handwritten", type=Path, default=Path(__file__).with_name("handwritten.jsonl"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("train.jsonl"))
    args = parser.parse_args()
    lines = args.handwritten.read_text(encoding="utf-8").splitlines()
    handwritten = [json.loads(line) for line in lines]
    rows = handwritten + generate(args.rows, args.seed, handwritten)
    random.Random(args.seed).shuffle(rows)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    args.out.write_text(text, encoding="utf-8")
    print(f"{len(rows)} rows in {args.out}: {dict(Counter(str(row['urgency']) for row in rows))}")


if __name__ == "__main__":
    main()
