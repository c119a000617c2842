# Print the lines of one package, versions and hashes, out of a lock file: sh one-package.sh NAME LOCKFILE
awk -v name="$1" 'index($0, name "==") == 1 { on = 1 } on { print } !/\\$/ { on = 0 }' "$2" | grep .
