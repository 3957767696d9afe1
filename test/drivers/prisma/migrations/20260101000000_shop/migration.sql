-- CreateTable
CREATE TABLE "tenants" (
    "tenant_id" BIGINT NOT NULL,
    "name" TEXT NOT NULL,
    "plan" TEXT,

    CONSTRAINT "tenants_pkey" PRIMARY KEY ("tenant_id")
);

-- CreateTable
CREATE TABLE "orders" (
    "tenant_id" BIGINT NOT NULL,
    "id" BIGINT NOT NULL,
    "note" TEXT,
    "total" DECIMAL(12,2) NOT NULL DEFAULT 0,
    "tags" TEXT[],
    "detail" JSONB,
    "body" BYTEA,
    "placed" TIMESTAMPTZ(6) NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT "orders_pkey" PRIMARY KEY ("tenant_id","id")
);

-- AddForeignKey
ALTER TABLE "orders" ADD CONSTRAINT "orders_tenant_id_fkey" FOREIGN KEY ("tenant_id") REFERENCES "tenants"("tenant_id") ON DELETE RESTRICT ON UPDATE NO ACTION;
