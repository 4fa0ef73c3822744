"""Where bytes lie: positioned reads and writes, and the folders that hold files. The only room that knows the OS."""
