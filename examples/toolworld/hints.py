"""The hint wordings in the student's training corpus: thirty per class, the last two held out.

`TRAINED[c]` are in the corpus; `HELD_OUT[c]` never are, so that a hint's effect can also be measured in words the
student was not trained on. Slots are the facts of a finding (`wrong`, `right`, `tool`, `tools`, `argument`).
"""

from __future__ import annotations

import random
import string

WORDINGS: dict[str, tuple[str, ...]] = {
    "unknown_tool": (
        "There is no tool {wrong}. The tools are {tools}.",
        "{wrong} is not in the tool list. Listed are {tools}.",
        "Only these tools exist: {tools}.",
        "The tool {wrong} does not exist. Use {right}.",
        "Do not call {wrong}, it is not listed. Call {right}.",
        "Use {right}, there is no {wrong}.",
        "Check the tool list before the call, {wrong} is missing there.",
        "You may only call listed tools. {wrong} is not one.",
        "Pick a tool from the list, not {wrong}.",
        "The right tool here is {right}.",
        "Nothing is called {wrong}. Take one of {tools}.",
        "Look at the tools: {tools}. Choose one of them.",
        "You cannot call {wrong}. Choose {right}.",
        "{right} is listed and {wrong} is not.",
        "Call {right} for this, it is in the list.",
        "No tool has the name {wrong}. Look at the list again.",
        "Stick to the list. Take {right}, not {wrong}.",
        "Without {wrong} in the list, call {right}.",
        "{wrong} was never listed. Listed are {tools}.",
        "That tool name is invented. Use {right}.",
        "Do not invent tools such as {wrong}.",
        "The list has {right} for this task, not {wrong}.",
        "A call of {wrong} will fail, since no such tool is listed.",
        "Before you call, read the list: {tools}.",
        "Among the tools is {right}, but no {wrong}.",
        "Calling {wrong} is an error. Take {right}.",
        "What you want is called {right} here.",
        "Your tools are {tools}, and no others.",
        "No tool is called {wrong}. Choose one of {tools}.",
        "Look at the list again: {right} is there and {wrong} is not.",
    ),
    "wrong_argument": (
        "{tool} has no argument {wrong}. Its argument is {right}.",
        "The argument of {tool} is called {right}.",
        "Use the argument {right}, not {wrong}.",
        "Do not write {wrong}, write {right}.",
        "{wrong} is no argument of {tool}.",
        "Take the argument name from the schema: {right}.",
        "The schema of {tool} says {right}.",
        "Name the argument {right} here.",
        "Read the signature of {tool}, it does not take {wrong}.",
        "Copy argument names from the list, {wrong} is not there.",
        "The name of the argument is {right} and not {wrong}.",
        "In the list the argument of {tool} is {right}.",
        "{tool} does not know {wrong}. Call the argument {right}.",
        "There is no argument {wrong}, take {right}.",
        "As the schema says, the argument is {right}.",
        "Look at the signature: {tool} wants {right}.",
        "{tool} takes the argument {right}.",
        "Choose the argument name that is listed, {right}.",
        "A call of {tool} with {wrong} will fail. Write {right}.",
        "That argument name is invented. {tool} wants {right}.",
        "Do not invent argument names such as {wrong}.",
        "Write {right} where you would write {wrong}.",
        "The user says {wrong}, the schema says {right}.",
        "Call {tool} with {right}.",
        "Only {right} is an argument of {tool}.",
        "The word of the user is not the argument name. Use {right}.",
        "Pass the value as {right}.",
        "An argument {wrong} is not known to {tool}. Read the list.",
        "{tool} takes {right} and no {wrong}.",
        "Call the argument {right}, as the list says.",
    ),
    "skipped_lookup": (
        "Look up the {argument} with {tool} first.",
        "You do not know the {argument} yet. Call {tool}.",
        "Do not guess the {argument}, call {tool} before.",
        "{tool} gives the {argument}. Call it first.",
        "The {argument} must come from {tool}.",
        "A name is no {argument}. Use {tool} to find it.",
        "First call {tool}, even when it is urgent.",
        "Never skip {tool}.",
        "The {argument} has to be looked up.",
        "Find the {argument} before you use it.",
        "Begin with {tool}, then use the {argument}.",
        "Start by finding the {argument}.",
        "{tool} returns the {argument} you need.",
        "The {argument} is unknown until you call {tool}.",
        "You need {tool} before anything else.",
        "Get the {argument} from {tool}, do not write the name there.",
        "Without the {argument} you cannot go on, so look it up.",
        "Even in a hurry, {tool} comes first.",
        "Do not use a name as {argument}. Look it up with {tool}.",
        "You have no {argument} yet, so begin with {tool}.",
        "Only {tool} knows the {argument}.",
        "The {argument} is a number that {tool} returns.",
        "One step is missing: call {tool}.",
        "Hurry is no reason to skip {tool}.",
        "Before the last call comes {tool}.",
        "An invented {argument} is wrong. Look it up.",
        "Ask {tool} for the {argument}.",
        "Take no short cut, look up the {argument}.",
        "Start with {tool}, it returns the {argument}.",
        "Without {tool} the {argument} is unknown.",
    ),
    "ignored_error": (
        "The call of {tool} failed. Call it again.",
        "{tool} returned an error, so there is no result yet. Retry.",
        "A timeout is not a result. Call {tool} again.",
        "Do not make up a value after an error.",
        "The last call timed out. Repeat it.",
        "There is no result yet. Try {tool} once more.",
        "After an error, call the tool again.",
        "You have no answer yet, {tool} timed out.",
        "Never answer from a failed call.",
        "Repeat {tool} before you answer.",
        "The error means that {tool} has to be called again.",
        "Retry the call that timed out.",
        "No value came back. Call {tool} again.",
        "An answer needs a result, so repeat the call.",
        "Try again, {tool} gave only an error.",
        "Do not answer yet, retry {tool}.",
        "You cannot know the value, the call failed.",
        "Once more, please: {tool} failed.",
        "You got no value from {tool}. Run it again.",
        "An invented answer is wrong. Call {tool} a second time.",
        "The error has to be handled: repeat the call.",
        "{tool} must be called a second time.",
        "Nothing came back, so call {tool} again.",
        "The last result is an error. Do the call again.",
        "Wait with the answer and retry {tool}.",
        "Since {tool} failed, you do not know the answer.",
        "Make the same call again.",
        "A failed call needs a second try.",
        "Retry {tool}, it timed out.",
        "An error is no answer. Call {tool} once more.",
    ),
    "generic": (
        "Be polite to the user.",
        "Keep your answer short.",
        "Write in plain English.",
        "The user is in a good mood today.",
        "Remember to stay calm.",
        "Think about it for a moment.",
        "Answer in one sentence.",
        "This is a normal request.",
        "Take all the time you need.",
        "The user likes brief replies.",
        "Nothing special is needed here.",
        "Go on as you always do.",
        "The user will read every word of the answer.",
        "Please be clear.",
        "It is good to be kind.",
        "You do well so far.",
        "Use simple words for the user.",
        "The answer should be easy to read.",
        "Today is a good day.",
        "Do your best.",
        "The user is new here.",
        "Read the request with care.",
        "There is no need to hurry.",
        "Good work so far, go on.",
        "The user speaks English.",
        "Say it in a friendly way.",
        "This user asks often.",
        "Keep a calm tone.",
        "Please be kind and clear.",
        "The user reads every word.",
    ),
}
TRAINED = {name: words[:-2] for name, words in WORDINGS.items()}
HELD_OUT = {name: words[-2:] for name, words in WORDINGS.items()}


OPENINGS = ("", "", "", "Note: ", "Hint: ", "Careful. ", "Remember: ", "Important: ")
SYNONYMS = {
    "Call": ("Call", "Run", "Use"),
    "call": ("call", "run", "use"),
    "again": ("again", "once more", "another time"),
    "failed": ("failed", "broke", "did not work"),
    "first": ("first", "before that", "at the start"),
    "Retry": ("Retry", "Repeat", "Try again"),
    "Use": ("Use", "Take", "Choose"),
    "listed": ("listed", "in the list"),
    "Never": ("Never", "Do not ever"),
    "Find": ("Find", "Look up", "Get"),
    "result": ("result", "value", "answer"),
}


def spoken(wording: str, rng: random.Random) -> str:
    """A wording as the corpus has it: some words exchanged, sometimes with an opening, so that no phrase is learned by heart."""
    words = [rng.choice(SYNONYMS[w]) if w in SYNONYMS and rng.random() < 0.5 else w for w in wording.split(" ")]
    return rng.choice(OPENINGS) + " ".join(words)


def slots(wording: str) -> set[str]:
    """The slot names of a wording."""
    return {name for _, name, _, _ in string.Formatter().parse(wording) if name}


def shuffled(text: str, rng: random.Random) -> str:
    """The words of a hint in another order: same length, same words, no message."""
    words = text.split()
    for _ in range(8):
        rng.shuffle(words)
        if " ".join(words) != text:
            break
    return " ".join(words)
