//! The Auth service, as etcd answers while authentication is off. There is nothing to turn on: who may connect is decided by the
//! certificates of the client listener.

use crate::api::Api;
use crate::error;
use skiff_proto::etcd::etcdserverpb as pb;
use tonic::{Request, Response, Status};

fn nothing_kept() -> Status {
    Status::unimplemented("etcdserver: Skiff's store keeps no users and roles; clients prove themselves by certificate")
}

macro_rules! refused {
    ($($method:ident, $request:ident, $response:ident, $error:expr;)*) => {
        #[tonic::async_trait]
        impl pb::auth_server::Auth for Api {
            async fn auth_status(
                &self,
                _: Request<pb::AuthStatusRequest>,
            ) -> Result<Response<pb::AuthStatusResponse>, Status> {
                let header = self.header();
                Ok(Response::new(pb::AuthStatusResponse { header, enabled: false, auth_revision: 1 }))
            }
            async fn auth_disable(
                &self,
                _: Request<pb::AuthDisableRequest>,
            ) -> Result<Response<pb::AuthDisableResponse>, Status> {
                Ok(Response::new(pb::AuthDisableResponse { header: self.header() }))
            }
            async fn user_list(
                &self,
                _: Request<pb::AuthUserListRequest>,
            ) -> Result<Response<pb::AuthUserListResponse>, Status> {
                Ok(Response::new(pb::AuthUserListResponse { header: self.header(), users: Vec::new() }))
            }
            async fn role_list(
                &self,
                _: Request<pb::AuthRoleListRequest>,
            ) -> Result<Response<pb::AuthRoleListResponse>, Status> {
                Ok(Response::new(pb::AuthRoleListResponse { header: self.header(), roles: Vec::new() }))
            }
            $(async fn $method(&self, _: Request<pb::$request>) -> Result<Response<pb::$response>, Status> {
                Err($error)
            })*
        }
    };
}

refused! {
    auth_enable, AuthEnableRequest, AuthEnableResponse, error::root_user_missing();
    authenticate, AuthenticateRequest, AuthenticateResponse, error::auth_not_enabled();
    user_add, AuthUserAddRequest, AuthUserAddResponse, nothing_kept();
    user_get, AuthUserGetRequest, AuthUserGetResponse, error::user_not_found();
    user_delete, AuthUserDeleteRequest, AuthUserDeleteResponse, error::user_not_found();
    user_change_password, AuthUserChangePasswordRequest, AuthUserChangePasswordResponse, error::user_not_found();
    user_grant_role, AuthUserGrantRoleRequest, AuthUserGrantRoleResponse, error::user_not_found();
    user_revoke_role, AuthUserRevokeRoleRequest, AuthUserRevokeRoleResponse, error::user_not_found();
    role_add, AuthRoleAddRequest, AuthRoleAddResponse, nothing_kept();
    role_get, AuthRoleGetRequest, AuthRoleGetResponse, error::role_not_found();
    role_delete, AuthRoleDeleteRequest, AuthRoleDeleteResponse, error::role_not_found();
    role_grant_permission, AuthRoleGrantPermissionRequest, AuthRoleGrantPermissionResponse, error::role_not_found();
    role_revoke_permission, AuthRoleRevokePermissionRequest, AuthRoleRevokePermissionResponse, error::role_not_found();
}
