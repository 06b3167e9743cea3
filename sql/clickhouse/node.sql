-- Which server answers: its name, and the id that it made for itself when it first started.
SELECT concat(hostName(), ' ', toString(serverUUID()))
