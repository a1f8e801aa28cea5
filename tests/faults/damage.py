"""Ways in which the bytes of a file go wrong, all of them drawn from one number."""

import random

PAGE = 4096


def flip(chance, content):
    """One bit is another."""
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def scribble(chance, content):
    """A few bytes are any others."""
    start = chance.randrange(len(content))
    stretch = content[start : start + chance.randint(1, 64)]
    content[start : start + len(stretch)] = chance.randbytes(len(stretch))


def blank(chance, content):
    """A stretch was never written."""
    start = chance.randrange(len(content))
    stretch = content[start : start + chance.randint(1, PAGE)]
    content[start : start + len(stretch)] = bytes(len(stretch))


def overwrite_page(chance, content):
    start = PAGE * chance.randrange(len(content) // PAGE)
    content[start : start + PAGE] = chance.randbytes(PAGE)


def swap_pages(chance, content):
    """Two pages were written in each other's place."""
    one, other = (PAGE * chance.randrange(len(content) // PAGE) for _ in range(2))
    pages = content[one : one + PAGE], content[other : other + PAGE]
    content[other : other + PAGE], content[one : one + PAGE] = pages


def cut(chance, content):
    del content[chance.randrange(len(content)) :]


WAYS = (flip, scribble, blank, overwrite_page, swap_pages, cut)


def damaged(content, number):
    """``content`` with one damage, the same for the same number."""
    chance = random.Random(number)
    result = bytearray(content)
    chance.choice(WAYS)(chance, result)
    return bytes(result)
