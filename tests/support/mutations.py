"""Files that came from elsewhere and are not what they were."""

from hypothesis import strategies as st


@st.composite
def mutations(draw: st.DrawFn, sound: bytes) -> bytes:
    """Return a sound file with a few bytes changed, cut out, put in or repeated."""
    content = bytearray(sound)
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        change = draw(st.sampled_from(["set", "cut", "insert", "repeat"]))
        if change == "set" and content:
            content[place] = draw(st.integers(0, 255))
        elif change == "cut":
            del content[place : place + draw(st.integers(1, 8))]
        elif change == "insert":
            content[place:place] = draw(st.binary(min_size=1, max_size=8))
        else:
            content[place:place] = content[place : place + draw(st.integers(1, 40))]
    return bytes(content)
