"""A server beside a trained network: what the servers of all tasks share.

`settings` has the limits, flags and the check for packages that are optional; the other files
import these. `app` makes the application: token and limits (`guard`), health, metrics and pages.
`sockets` is a websocket that ends with a reason, `sound` an upload as samples, `incoming` a
websocket's, `answers` what is sent back, `store` what clients leave for a while, `running` the
process.
"""
