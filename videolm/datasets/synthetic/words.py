"""All words of the world's captions, questions and answers: what a model's vocabulary has to know."""

_WORDS = """
    a acts after again against an and another apart are as at back background becomes becoming before behind
    big bigger black blink blinking blinks blue bottom bounce bounces bouncing brown bump bumps checkered
    circle climbing climbs clockwise collide collides color comes coming corner counterclockwise cross
    diagonally direction do does dotted down downward drifting drifts each ending ends expanding expands
    falling falls first five flashes flashing four from gets getting goes going gradient gray green grow
    growing grows hit hits hopping hops how in into is it jumping jumps larger last left lower many middle
    move moves moving navy no object of off olive on one orange other passes passing pink plain purple red
    remains rest resting right ring rises rising rotates rotating run see shape shapes shrink shrinking
    shrinks sinking sinks slides sliding small smaller something speckled spin spinning spins square
    standing stands star starting starts staying stays still stopping stops striped that the then there they
    things three to top toward traveling travels triangle turning turns two up upper upward vanishes
    vanishing video waiting waits way we what which while white with yellow yes
    """
# A question mark parts a question from its answer.
VOCABULARY = (",", ":", "?", *_WORDS.split())
