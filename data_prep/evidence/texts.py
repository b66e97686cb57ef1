"""Plain questions with their answers, no picture: what the language model could do before it was taught to see."""

from __future__ import annotations

from typing import Final

PLAIN: Final[tuple[tuple[str, str], ...]] = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What is the capital of Italy?", "The capital of Italy is Rome."),
    ("How many days are in a week?", "There are seven days in a week."),
    ("How many months are in a year?", "There are twelve months in a year."),
    ("What colour is the sky on a clear day?", "On a clear day the sky is blue."),
    ("What do bees make?", "Bees make honey."),
    ("What is the opposite of hot?", "The opposite of hot is cold."),
    ("Which planet do we live on?", "We live on the planet Earth."),
    ("What is frozen water called?", "Frozen water is called ice."),
    ("What gas do people need to breathe?", "People need oxygen to breathe."),
    ("Who wrote Romeo and Juliet?", "Romeo and Juliet was written by William Shakespeare."),
    ("What is the largest ocean?", "The largest ocean is the Pacific Ocean."),
    ("What is two plus two?", "Two plus two is four."),
    ("What language is spoken in Spain?", "In Spain people speak Spanish."),
    ("At what temperature does water boil?", "Water boils at 100 degrees Celsius at sea level."),
    ("What is a baby dog called?", "A baby dog is called a puppy."),
    ("What do plants need to grow?", "Plants need water, light and air to grow."),
    ("What is the first month of the year?", "The first month of the year is January."),
    ("Why do we have seasons?", "We have seasons because the Earth's axis is tilted as it orbits the Sun."),
    ("Name three primary colours.", "Three primary colours are red, blue and yellow."),
    ("What does a thermometer measure?", "A thermometer measures temperature."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("What is the currency of Japan?", "The currency of Japan is the yen."),
    ("Write a sentence about the sea.", "The sea was calm and blue under the morning sun."),
    ("What is bread made of?", "Bread is made of flour, water, salt and yeast."),
    ("What is the heart for?", "The heart pumps blood through the body."),
    ("Where do penguins live?", "Most penguins live in the southern hemisphere, many of them in Antarctica."),
    ("What is a library?", "A library is a place where people can read and borrow books."),
    ("How do you make tea?", "Pour boiling water over tea leaves and let them steep for a few minutes."),
    ("What is the moon?", "The moon is a natural satellite that orbits the Earth."),
    ("Who painted the Mona Lisa?", "The Mona Lisa was painted by Leonardo da Vinci."),
    ("What is a verb?", "A verb is a word that describes an action or a state."),
)
