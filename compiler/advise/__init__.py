"""``topkast.advise``: short runs of the user's own step on copies, and a recommendation with its limits."""
