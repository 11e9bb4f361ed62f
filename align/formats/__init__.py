"""The formats on disk, one artefact a module, each read and checked here.

A file that two folders read or write comes in, whether ours or other people's: its layout, its checks, the digest that
names its content. Who writes it decides what is in it; where its bytes lie (this disk, S3) is in `services/`. Whoever
reads foreign bytes here bounds what they may cost, and `make fuzz` tries it.
"""
