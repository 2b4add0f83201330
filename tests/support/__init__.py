"""Peers for black-box tests: a scripted LMTP backend, a byte-level LMTP client and the real proxy process.

They speak over real sockets and keep their own record of what passed. They may not import the code under test.
"""
