-- psql: what a server has done long ago when its users come.
vacuum (analyze);
checkpoint;
