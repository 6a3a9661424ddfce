"""The online side: one resident object that takes events in and answers requests from memory."""
