"""Changes of a site: θ in the slots of other sets, the copies that follow, and how a change is put in force."""
