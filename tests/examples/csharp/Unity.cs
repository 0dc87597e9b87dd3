// Declarations of what T2VStream.cs uses of Unity, from its scripting reference: enough to compile it, not to run it.
using System;

namespace UnityEngine
{
    public class Object
    {
        public static void Destroy(Object what) { }
    }

    public class Component : Object
    {
        public T GetComponent<T>() { return default(T); }
    }

    public class MonoBehaviour : Component { }

    public class Material : Object
    {
        public Texture mainTexture { get; set; }
        public Vector2 mainTextureScale { get; set; }
        public Vector2 mainTextureOffset { get; set; }
    }

    public class Renderer : Component
    {
        public Material material { get; set; }
    }

    public class Texture : Object
    {
        public virtual int width { get; set; }
        public virtual int height { get; set; }
        public TextureWrapMode wrapMode { get; set; }
    }

    public class Texture2D : Texture
    {
        public Texture2D(int width, int height, TextureFormat format, bool mipChain) { }
        public void LoadRawTextureData(byte[] data) { }
        public void Apply(bool updateMipmaps) { }
    }

    public static class ImageConversion
    {
        public static bool LoadImage(this Texture2D texture, byte[] data, bool markNonReadable) { return true; }
    }

    public struct Vector2
    {
        public Vector2(float x, float y) { }
    }

    public enum TextureFormat { RGB24 }

    public enum TextureWrapMode { Clamp }

    [AttributeUsage(AttributeTargets.Field)]
    public sealed class SerializeField : Attribute { }

    [AttributeUsage(AttributeTargets.Field)]
    public sealed class TooltipAttribute : Attribute
    {
        public TooltipAttribute(string text) { }
    }

    [AttributeUsage(AttributeTargets.Field)]
    public sealed class RangeAttribute : Attribute
    {
        public RangeAttribute(float least, float most) { }
    }

    [AttributeUsage(AttributeTargets.Class)]
    public sealed class RequireComponent : Attribute
    {
        public RequireComponent(Type needed) { }
    }
}
