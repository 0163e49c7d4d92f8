#!/bin/bash
# Runs once, when the data volume is empty: a role and a database for each service. A role owns its database and can
# connect to none of the others, so that no service can read another's tables. The services run their own migrations.
set -euo pipefail

for service in account transaction saga; do
	variable="${service^^}_DB_PASSWORD"
	: "${!variable:?is not set}"
	# The password is read by psql from the environment: it appears on no command line.
	psql --no-psqlrc --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres --set name="billing_$service" <<-SQL
		\getenv password $variable
		CREATE ROLE :"name" LOGIN PASSWORD :'password';
		CREATE DATABASE :"name" OWNER :"name";
		REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
	SQL
done
