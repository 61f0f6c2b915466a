"""The classes of zope.sendmail and repoze.sendmail, on top of postcommit.

For code that imports an older library by name. `postcommit.compat.zope_sendmail` and
`postcommit.compat.repoze_sendmail` need neither of the two. `postcommit.mailhost` and
`postcommit.pyramid_mailer` put them into Products.MailHost and pyramid_mailer.

Options that the older libraries lack come from the environment. `ENVIRONMENT` in
`postcommit.compat._relay` has their names, such as ``POSTCOMMIT_CAFILE``.
"""
