"""The case in other people's tools, and checks that they show it."""
