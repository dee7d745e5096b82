"""Where people meet the assistant: conversations, their limits, and the web page."""
