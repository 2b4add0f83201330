"""What the proxy answers when something breaks, asked of the real process over real sockets."""
