"""VoiceFilter-Lite: features of one voice for a recogniser (Wang et al. 2020, arXiv:2009.04323).

`network` is what filters, `losses` and `task` train it, `evaluation` says what it does, `filtering`
is a trained one in use, in front of a recogniser.
"""
