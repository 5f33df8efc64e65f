"""A gateway's day on real dialogues, with a worker that is killed again and again.

sources   real dialogues: chatterbot-corpus, or transcripts in JSON lines
script    dialogues become sessions: who says what, on which channel
worker    the process that is killed: the store, an inbox, agents
process   that process, as its driver sees it
ledger    what was said, and what was acknowledged
verify    the store against the ledger
driver    plays, kills, starts again
screen    what is seen meanwhile
report    what is told at the end
run       one after the other
"""
