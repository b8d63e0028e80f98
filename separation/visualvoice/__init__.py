"""VisualVoice: who is seen to speak is heard alone (Gao and Grauman, CVPR 2021, arXiv:2101.03149).

The published networks and losses, written anew from the paper's figures and tables. `config` has
the sizes, `network` puts `lips`, `faces` and `unet` together, `losses` trains them.
"""
