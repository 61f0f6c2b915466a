"""``postcommit demo``: a small shop, its queue and a relay, in a few seconds."""
