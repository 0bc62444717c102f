"""The league of self-play: who is in it, who beats whom, who plays whom next, and how good each is."""
