"""Files of others: each kind is opened here, under limits, before a library is trusted with it."""
