CREATE TABLE "tenants" (
	"tenant_id" bigint PRIMARY KEY NOT NULL,
	"name" text NOT NULL
);
