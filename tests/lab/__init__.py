"""The project's own small internet, its faults, and who counts what they cost.

wires.py      hosts in network namespaces, the router between them, and what it drops
slowlink.py   a link with delay and loss, in user space: the kernel here has no netem
lab.py        the fleet on these hosts: nameservers, tunnel servers, clients, origins, a resolver
inquirer.py   asks every nameserver all the time
oracle.py     visitors, and what became of each request
turns.py      runs a program and writes down every long turn of its reactor
faults.py     what is done to the fleet, and that it happened
figures.py    the experiments, each of which ends in bars
chaos.py      `make chaos`
"""
