"""Authoritative DNS on values: octets and zones in, octets out. No socket, no clock.

    names       a name is its wire form, lower-cased
    numbers     the IANA numbers used here
    zone        one version of a zone: immutable, replaced whole
    layered     a large mapping with a few changes over it
    packed      a large zone as octets, on the disk and in service
    touched     what an answer depends on, and what a change touches
    steps       work that can be interrupted
    zonefile    the text of a master file -> a zone, or the lines that are wrong
    plainlines  those of its lines that most files consist of
    tokens      its tokens, each with its line
    zonecheck   which records may stand together in a zone
    overlay     live records laid over a static zone, and where the two conflict
    serial      which number the next version of a zone gets
    question    the bounded walk of a message from the network
    lookup      what the zones hold for a name and a type (RFC 1034 4.3.2)
    answer      the octets of an answer
    table       finished octets by question: the hot path
    responder   a message in, an answer out, or why it was dropped
    rrtypes     types of records as they are written
    sections    the bounded walk of a message that has many records
    tsig        who sent a message: signatures, checked on the octets as they came
    keyfile     the file of a key
    policy      what the holder of a key may change
    update      what an UPDATE asks for, and what comes of it
    amendments  what UPDATE made of a zone file, which stays as it is
    journal     what changed from version to version, for IXFR
    transfer    the messages of AXFR and IXFR
    notify      telling the secondaries that a zone has changed, and when again

A query is table -> (on a miss) question -> lookup -> answer -> table. An UPDATE is responder -> sections and
tsig -> update -> amendments. Nothing that came from the network is ever given to dnslib; dnspython reads zone
files, which are the operator's, and the data of records in an UPDATE whose signature was found right.
"""
