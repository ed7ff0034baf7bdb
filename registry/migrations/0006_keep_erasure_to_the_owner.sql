-- Erasing takes away what the record promises to keep, so it is not the service's to do: whoever takes the service over
-- must not be able to. The owner of the record erases (`overread erase`), and nobody else may call the function.
REVOKE EXECUTE ON FUNCTION erase_patient FROM overread_app;
