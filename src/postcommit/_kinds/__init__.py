"""The kinds of queues: a folder, or a URL such as ``postgresql://host/db``.

No other part knows which kinds there are. The modules of a database are imported when
its queue is opened, so an application without one never imports psycopg. Those of a
folder are imported at once. A command of root becomes the owner of a queue, who may not
be allowed to read them.
"""
