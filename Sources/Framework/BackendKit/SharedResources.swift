// SPDX-License-Identifier: Apache-2.0

/// Resources that the backends of one program share, such as the context of a library.
///
/// The first backend that asks for a type of resource makes the resource, which lives as long as a
/// backend retains it. Used on the event loop only.
public final class SharedResources {
    private struct WeakReference {
        weak var resource: AnyObject?
    }

    private var references: [ObjectIdentifier: WeakReference] = [:]

    /// Creates an empty collection.
    public init() {}

    /// Returns the resource of a type.
    ///
    /// - Parameter make: makes the resource, if no backend retains one.
    /// - Returns: the resource that a backend retains, or the new one.
    /// - Throws: the error of `make`.
    public func resource<Resource: AnyObject, Failure: Error>(
        _ make: () throws(Failure) -> Resource
    ) throws(Failure) -> Resource {
        let type = ObjectIdentifier(Resource.self)
        if let resource = references[type]?.resource as? Resource { return resource }
        let resource = try make()
        references[type] = WeakReference(resource: resource)
        return resource
    }
}
